import Foundation

/// Normalizer of tokenizer.json, applied to the text before pre-tokenization.
struct Normalizer: Sendable {
    private enum Step: Sendable {
        case cleanText
        case spaceAroundChinese
        case stripMarks(nonSpacingOnly: Bool)
        case lowercase
        case form(Form)
        case replace([Unicode.Scalar], by: [Unicode.Scalar])
        case joinSpaces
        case precompiled(PrecompiledMap)
    }

    private enum Form: String {
        case NFC, NFD, NFKC, NFKD
    }

    private let steps: [Step]

    init(_ json: JSON) throws {
        steps = json.isNull ? [] : try Normalizer.steps(json)
    }

    func apply(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        steps.reduce(text) { Normalizer.apply($1, to: $0) }
    }

    private static func steps(_ json: JSON) throws -> [Step] {
        let type = json["type"].string ?? ""
        switch type {
        case "Sequence":
            return try (json["normalizers"].array ?? []).flatMap(steps)
        case "BertNormalizer":
            let lowercase = json["lowercase"].bool ?? true
            var found: [Step] = []
            if json["clean_text"].bool ?? true { found.append(.cleanText) }
            if json["handle_chinese_chars"].bool ?? true { found.append(.spaceAroundChinese) }
            if json["strip_accents"].bool ?? lowercase { found += [.form(.NFD), .stripMarks(nonSpacingOnly: true)] }
            if lowercase { found.append(.lowercase) }
            return found
        case "Lowercase":
            return [.lowercase]
        case "StripAccents":
            return [.stripMarks(nonSpacingOnly: false)]
        case "Replace":
            guard let content = json["content"].string else { break }
            if let pattern = json["pattern"]["String"].string, !pattern.isEmpty {
                return [.replace(Array(pattern.unicodeScalars), by: Array(content.unicodeScalars))]
            }
            if json["pattern"]["Regex"].string == " {2,}", content == " " { return [.joinSpaces] }
        case "Precompiled":
            guard let map = json["precompiled_charsmap"].string else { break }
            return [.precompiled(try PrecompiledMap(base64: map))]
        default:
            if let form = Form(rawValue: type) { return [.form(form)] }
        }
        throw EarlyExitError.failure("unknown normalizer '\(type)'")
    }

    private static func apply(_ step: Step, to text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        switch step {
        case .cleanText:
            return text.filter { !$0.isControl }.map { $0.isBlank ? " " : $0 }
        case .spaceAroundChinese:
            return text.flatMap { $0.isChinese ? [" ", $0, " "] : [$0] }
        case .stripMarks(let nonSpacingOnly):
            return text.filter { nonSpacingOnly ? $0.properties.generalCategory != .nonspacingMark : !$0.isMark }
        case .lowercase:
            return text.flatMap { $0.isASCII ? [$0.lowercaseASCII] : Array($0.properties.lowercaseMapping.unicodeScalars) }
        case .form(let form):
            return text.allSatisfy(\.isASCII) ? text : Normalizer.compose(text, form)
        case .replace(let pattern, let content):
            return replace(pattern, by: content, in: text)
        case .joinSpaces:
            return text.indices.filter { $0 == 0 || text[$0] != " " || text[$0 - 1] != " " }.map { text[$0] }
        case .precompiled(let map):
            return map.apply(text)
        }
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

    private static func replace(
        _ pattern: [Unicode.Scalar], by content: [Unicode.Scalar], in text: [Unicode.Scalar]
    ) -> [Unicode.Scalar] {
        var found: [Unicode.Scalar] = []
        var at = 0
        while at < text.count {
            if text[at...].starts(with: pattern) {
                found += content
                at += pattern.count
            } else {
                found.append(text[at])
                at += 1
            }
        }
        return found
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
