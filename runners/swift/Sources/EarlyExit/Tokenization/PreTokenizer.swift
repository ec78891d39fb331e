/// Pre-tokenizer of tokenizer.json, which splits the text into words.
struct PreTokenizer: Sendable {
    typealias Word = ArraySlice<Unicode.Scalar>

    private enum Step: Sendable {
        /// Splits at whitespace, which is removed, and around each punctuation mark.
        case bert
        /// Splits by GPT-2's pattern; whitespace is kept.
        case byteLevel(prefixSpace: Bool)
        case whitespace
        /// Splits after each blank, which is kept.
        case afterBlanks
        /// Replaces blanks by a mark, and splits before each mark.
        case metaspace(mark: Unicode.Scalar, prepend: Bool, split: Bool)
    }

    private let steps: [Step]

    init(_ json: JSON) throws {
        steps = json.isNull ? [] : try PreTokenizer.steps(json)
    }

    func words(_ text: AlignedText) -> [AlignedText] {
        steps.reduce([text]) { words, step in
            words.flatMap { PreTokenizer.apply(step, to: $0) }.filter { !$0.isEmpty }
        }
    }

    private static func steps(_ json: JSON) throws -> [Step] {
        let type = json["type"].string ?? ""
        switch type {
        case "Sequence":
            return try (json["pretokenizers"].array ?? []).flatMap(steps)
        case "BertPreTokenizer":
            return [.bert]
        case "ByteLevel" where json["use_regex"].bool ?? true:
            return [.byteLevel(prefixSpace: json["add_prefix_space"].bool ?? true)]
        case "WhitespaceSplit":
            return [.whitespace]
        case "Split"
        where json["pattern"]["String"].string == " " && json["behavior"].string == "MergedWithPrevious"
            && json["invert"].bool != true:
            return [.afterBlanks]
        case "Metaspace":
            let scheme = json["prepend_scheme"].string ?? "always"
            guard let mark = json["replacement"].string?.unicodeScalars.first, scheme == "always" || scheme == "never"
            else { break }
            return [.metaspace(mark: mark, prepend: scheme == "always", split: json["split"].bool ?? true)]
        default:
            break
        }
        throw EarlyExitError.failure("unknown pre_tokenizer '\(type)'")
    }

    private static func apply(_ step: Step, to text: AlignedText) -> [AlignedText] {
        var text = text
        var words: [Word]
        switch step {
        case .bert:
            words = text.scalars.split(whereSeparator: \.properties.isWhitespace).flatMap(isolatePunctuation)
        case .whitespace:
            words = text.scalars.split(whereSeparator: \.properties.isWhitespace)
        case .afterBlanks:
            let blanks = text.scalars.indices.filter { text.scalars[$0] == " " }
            let ends = blanks.map { $0 + 1 } + [text.scalars.endIndex]
            words = zip([text.scalars.startIndex] + ends, ends).map { text.scalars[$0..<$1] }
        case .byteLevel(let prefixSpace):
            if prefixSpace, text.scalars.first != " " { text = text.prepended(" ") }
            words = byteLevelWords(text.scalars)
        case .metaspace(let mark, let prepend, let split):
            text = text.mapped { $0 == " " ? mark : $0 }
            if prepend, text.scalars.first != mark { text = text.prepended(mark) }
            words = split ? self.words(text.scalars, eachFrom: mark) : [text.scalars]
        }
        return words.map { text[$0.startIndex..<$0.endIndex] }
    }

    private static func isolatePunctuation(_ text: Word) -> [Word] {
        var words: [Word] = []
        var start = text.startIndex
        for place in text.indices where text[place].isPunctuation {
            words += [text[start..<place], text[place...place]]
            start = place + 1
        }
        return words + [text[start...]]
    }

    /// Splits a text before each occurrence of the mark.
    private static func words(_ text: Word, eachFrom mark: Unicode.Scalar) -> [Word] {
        let starts = [text.startIndex] + text.indices.dropFirst().filter { text[$0] == mark }
        return zip(starts, starts.dropFirst() + [text.endIndex]).map { text[$0..<$1] }
    }

    /// GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    private static func byteLevelWords(_ text: Word) -> [Word] {
        var words: [Word] = []
        var at = text.startIndex
        while at < text.endIndex {
            let end = endOfWord(text[at...])
            words.append(text[at..<end])
            at = end
        }
        return words
    }

    private static let contractions: [[Unicode.Scalar]] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map {
        Array($0.unicodeScalars)
    }

    /// End index of the first word of a non-empty text.
    private static func endOfWord(_ text: Word) -> Int {
        if let contraction = contractions.first(where: { text.starts(with: $0) }) {
            return text.startIndex + contraction.count
        }
        let body = text.first == " " ? text.dropFirst() : text
        if let kind = body.first?.kind, kind != .blank { return body.prefix { $0.kind == kind }.endIndex }
        let blanks = text.prefix { $0.kind == .blank }
        // The last blank belongs to the next word.
        return blanks.endIndex < text.endIndex && blanks.count > 1 ? blanks.endIndex - 1 : blanks.endIndex
    }
}

extension Unicode.Scalar {
    enum Kind {
        case letter, number, blank, other
    }

    var kind: Kind {
        if properties.isWhitespace { return .blank }
        switch properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return .letter
        case .decimalNumber, .letterNumber, .otherNumber: return .number
        default: return .other
        }
    }

    /// True for Unicode punctuation, and for ASCII characters that are neither letter, digit nor blank.
    fileprivate var isPunctuation: Bool {
        switch value {
        case 0x21...0x2F, 0x3A...0x40, 0x5B...0x60, 0x7B...0x7E: return true
        default: break
        }
        switch properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            return true
        default:
            return false
        }
    }
}
