import Foundation

/// Normalizer of tokenizer.json, applied to the text before pre-tokenization.
struct Normalizer: Sendable {
    private typealias Step = @Sendable (AlignedText) -> AlignedText
    private typealias Scalars = [Unicode.Scalar]

    private enum Form: String {
        case NFC, NFD, NFKC, NFKD
    }

    private let steps: [Step]

    init(_ json: JSON) throws {
        steps = json.isNull ? [] : try Normalizer.steps(json)
    }

    func apply(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        Array(apply(AlignedText(text, aligned: false)).scalars)
    }

    func apply(_ text: AlignedText) -> AlignedText {
        steps.reduce(text) { $1($0) }
    }

    private static func steps(_ json: JSON) throws -> [Step] {
        let type = json["type"].string ?? ""
        switch type {
        case "Sequence":
            return try (json["normalizers"].array ?? []).flatMap(steps)
        case "BertNormalizer":
            let lower = json["lowercase"].bool ?? true
            var found: [Step] = []
            if json["clean_text"].bool ?? true { found.append(changing(cleanText)) }
            if json["handle_chinese_chars"].bool ?? true { found.append(changing(spaceAroundChinese)) }
            if json["strip_accents"].bool ?? lower {
                found.append(changing { form($0, .NFD) })
                found.append(changing { $0.filter { $0.properties.generalCategory != .nonspacingMark } })
            }
            if lower { found.append(changing(lowercase)) }
            return found
        case "Lowercase":
            return [changing(lowercase)]
        case "StripAccents":
            return [changing { $0.filter { !$0.isMark } }]
        case "Replace":
            guard let content = json["content"].string else { break }
            if let pattern = json["pattern"]["String"].string, !pattern.isEmpty {
                return [replacing(Scalars(pattern.unicodeScalars), by: Scalars(content.unicodeScalars))]
            }
            guard content == " ", let matches = Normalizer.patterns[json["pattern"]["Regex"].string ?? ""] else { break }
            return [{ text in text.replaced({ matches(text.scalars, $0) }, by: [" "]) }]
        case "Strip":
            let (left, right) = (json["strip_left"].bool ?? true, json["strip_right"].bool ?? true)
            return [{ $0.stripped(left: left, right: right) }]
        case "Precompiled":
            guard let encoded = json["precompiled_charsmap"].string else { break }
            let map = try PrecompiledMap(base64: encoded)
            return [changing(map.apply)]
        default:
            if let which = Form(rawValue: type) { return [changing { form($0, which) }] }
        }
        throw EarlyExitError.failure("unknown normalizer '\(type)'")
    }

    private static func changing(_ change: @escaping @Sendable (Scalars) -> Scalars) -> Step {
        { $0.changed(change) }
    }

    private static func replacing(_ pattern: Scalars, by content: Scalars) -> Step {
        { text in
            text.replaced({ text.scalars[$0...].starts(with: pattern) ? $0 + pattern.count : nil }, by: content)
        }
    }

    /// Regular expressions of the tokenizers that are supported -> end of the match at an index; nil without one.
    private static let patterns: [String: @Sendable (ArraySlice<Unicode.Scalar>, Int) -> Int?] = [
        " {2,}": { text, start in
            let run = text[start...].prefix { $0 == " " }
            return run.count < 2 ? nil : run.endIndex
        },
        "\\s{2,}|[\\n\\r\\t]": { text, start in
            let run = text[start...].prefix { $0.properties.isWhitespace }
            return run.count > 1 || run.first.map { "\n\r\t".unicodeScalars.contains($0) } == true ? run.endIndex : nil
        },
    ]

    @Sendable
    private static func cleanText(_ text: Scalars) -> Scalars {
        text.filter { !$0.isControl }.map { $0.isBlank ? " " : $0 }
    }

    @Sendable
    private static func spaceAroundChinese(_ text: Scalars) -> Scalars {
        text.flatMap { $0.isChinese ? [" ", $0, " "] : [$0] }
    }

    @Sendable
    private static func lowercase(_ text: Scalars) -> Scalars {
        text.flatMap { $0.isASCII ? [$0.lowercaseASCII] : Array($0.properties.lowercaseMapping.unicodeScalars) }
    }

    private static func form(_ text: Scalars, _ form: Form) -> Scalars {
        text.allSatisfy(\.isASCII) ? text : compose(text, form)
    }

    private static func compose(_ text: [Unicode.Scalar], _ form: Form) -> [Unicode.Scalar] {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: text)
        let isCompatibility = form == .NFKC || form == .NFKD
        let decomposed =
            isCompatibility
            ? String(view).decomposedStringWithCompatibilityMapping : String(view).decomposedStringWithCanonicalMapping
        let sorted = Composition.sorted(Array(decomposed.unicodeScalars))
        return form == .NFC || form == .NFKC ? Composition.composed(sorted) : sorted
    }
}

extension Unicode.Scalar {
    /// True for control characters that BERT removes; tabs and line ends count as whitespace.
    fileprivate var isControl: Bool {
        switch self {
        case "\t", "\n", "\r": return false
        case "\0", "\u{FFFD}": return true
        default:
            switch properties.generalCategory {
            case .control, .format, .privateUse, .surrogate: return true
            default: return false
            }
        }
    }

    fileprivate var isBlank: Bool { properties.isWhitespace }

    fileprivate var lowercaseASCII: Unicode.Scalar {
        (0x41...0x5A).contains(value) ? Unicode.Scalar(UInt8(value) + 32) : self
    }

    /// True for the blocks of CJK ideographs that BERT's tokenizer lists.
    fileprivate var isChinese: Bool {
        switch value {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
            0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
            return true
        default:
            return false
        }
    }

    /// True for combining marks.
    var isMark: Bool {
        switch properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: return true
        default: return false
        }
    }
}
