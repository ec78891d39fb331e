import Foundation

/// Tokenizer defined by a tokenizer.json file (Hugging Face tokenizers). The token ids equal those of training.
///
/// Supports WordPiece (BERT, DistilBERT, ELECTRA), byte-level BPE (RoBERTa, ModernBERT), BPE with byte fallback (mmBERT) and
/// Unigram (ALBERT, XLM-R, CamemBERT, DeBERTa-v3). Any other content of the file is an error.
public struct Tokenizer: Sendable {
    private let addedTokens: AddedTokens
    private let normalizer: Normalizer
    private let preTokenizer: PreTokenizer
    private let model: any TokenModel
    private let template: Template
    private let maxLength: Int
    private let findsWords: Bool
    /// Number of words at the end of a prefix that may depend on the rest of the text: two, or the most that an added
    /// token may span.
    private let openWords: Int

    /// Length of the first prefix of a long text, in characters per token of `maxLength`.
    private static let charactersPerToken = 6
    /// Largest length of the texts of a pair whose tokens are all counted, in characters per token of `maxLength`. The
    /// count decides which text gets the odd token.
    private static let countedCharactersPerToken = 32
    /// Growth factor of the prefix of a long text; it grows until it contains enough tokens.
    private static let growth = 2

    public init(file: URL, maxLength: Int) throws {
        try self.init(file: file, maxLength: maxLength, words: false)
    }

    /// `maxLength`: maximum number of tokens of an input, including special tokens. The truncation and padding options
    /// of the file are ignored, because the manifest contains the limits of the model.
    ///
    /// `words`: also find the words of each text.
    init(file: URL, maxLength: Int, words: Bool) throws {
        let json = try JSON.read(file)
        do {
            normalizer = try Normalizer(json["normalizer"])
            preTokenizer = try PreTokenizer(json["pre_tokenizer"])
            model = try Tokenizer.model(json["model"])
            template = try Template(json["post_processor"])
            addedTokens = try AddedTokens(json["added_tokens"], normalizer: normalizer)
        } catch let error as EarlyExitError {
            throw EarlyExitError.failure(
                "cannot read tokenizer \(file.path): \(error.message). Upgrade the EarlyExit package, or export again")
        }
        self.maxLength = maxLength
        findsWords = words
        openWords = max(2, addedTokens.longest)
    }

    /// Ids and types of one text or a pair, truncated to `maxLength` tokens, the longer text of a pair first.
    /// Surrounding whitespace is removed. Of a long text, only the necessary prefix is tokenized.
    ///
    /// `end`: deadline in seconds on `clock`. The prefix does not grow any further if that would miss the deadline; the
    /// text is then truncated to the tokens found so far.
    public func encode(_ text: String, _ pair: String? = nil, end: Double = .infinity) -> Tokens {
        encode(text, pair, end: end, clock: now)
    }

    func encode(_ text: String, _ pair: String?, end: Double, clock: () -> Double) -> Tokens {
        let given = text
        let text = String(Tokenizer.stripped(given.unicodeScalars))
        let pair = pair.map { String(Tokenizer.stripped($0.unicodeScalars)) }
        let pieces = pair == nil ? template.single : template.pair
        let room = max(maxLength - pieces.filter(\.isSpecial).count, 0)
        let firstFound = found(in: text, room: room, end: end, clock: clock)
        let secondFound = pair.map { found(in: $0, room: room, end: end, clock: clock) } ?? (tokens: [], whole: true)
        var (first, second) = (firstFound.tokens, secondFound.tokens)
        var counts = (first.count, second.count)
        if let pair, min(counts.0, counts.1) > room {
            let characters = (text.unicodeScalars.count, pair.unicodeScalars.count)
            let countable = max(characters.0, characters.1) <= Tokenizer.countedCharactersPerToken * maxLength
            let whole = firstFound.whole && secondFound.whole
            if countable, !whole, clock() < end {
                counts.0 = found(in: text, room: .max, end: end, clock: clock).tokens.count
                counts.1 = found(in: pair, room: .max, end: end, clock: clock).tokens.count
            } else if !(countable && whole) {  // too long to count the tokens: the number of characters decides
                counts = (room + (characters.0 > characters.1 ? 2 : 1), room + 1)
            }
        }
        let kept = Tokenizer.longestFirst(counts.0, counts.1, room: room)
        let cut = kept != (first.count, second.count) || !firstFound.whole || !secondFound.whole
        first = Array(first.prefix(kept.0))
        second = Array(second.prefix(kept.1))

        var tokens = Tokens()
        for piece in pieces {
            switch piece {
            case .special(let id, let type): tokens.append(id, type: type)
            case .first(let type):
                if findsWords {
                    let stripped = Tokenizer.stripped(given.unicodeScalars)
                    tokens.words = Words(given, stripped: stripped, tokens: first.map(\.place), position: tokens.count)
                }
                first.forEach { tokens.append($0.id, type: type) }
            case .second(let type): second.forEach { tokens.append($0.id, type: type) }
            }
        }
        tokens.truncated = cut
        return tokens
    }

    /// A token of a text. `place`: its characters in the text, if the tokenizer finds words.
    private typealias Token = (id: Int32, place: Range<Int>)

    /// All tokens of a text, or of a prefix with more than `room` tokens. `whole`: true if they cover the whole text.
    ///
    /// Normalization and pre-tokenization look ahead at most one word, and the model tokenizes one word at a time. So
    /// the ids of a prefix without its last words are the first ids of the text.
    private func found(
        in text: String, room: Int, end: Double, clock: () -> Double
    ) -> (tokens: [Token], whole: Bool) {
        let scalars = Array(text.unicodeScalars)
        var length = Tokenizer.charactersPerToken * maxLength
        while length < scalars.count {
            let begin = clock()
            let words = words(of: Array(scalars[..<length]))
            let found = words.dropLast(openWords).flatMap(tokens(of:))
            let time = clock()
            if found.count > room { return (found, false) }
            if time + Double(Tokenizer.growth) * (time - begin) > end { return (words.flatMap(tokens(of:)), false) }
            length *= Tokenizer.growth
        }
        return (words(of: scalars).flatMap(tokens(of:)), true)
    }

    /// An added token, or a word for the tokenizer model.
    private enum Word {
        case token(Token)
        case text(AlignedText)
    }

    private func words(of scalars: [Unicode.Scalar]) -> [Word] {
        let text = AlignedText(scalars, aligned: findsWords)
        return addedTokens.split(text, normalizer: normalizer).flatMap { piece -> [Word] in
            switch piece {
            case .token(let id, let place): return [.token((id, place))]
            case .text(let part): return preTokenizer.words(part).map(Word.text)
            }
        }
    }

    private func tokens(of word: Word) -> [Token] {
        switch word {
        case .token(let token): return [token]
        case .text(let text):
            let pieces = model.tokens(of: text.scalars)
            guard findsWords else { return pieces.map { ($0.id, 0..<0) } }
            // The index of the character of each byte of the word.
            let characters = text.scalars.indices.flatMap { [Int](repeating: $0, count: utf8([text.scalars[$0]]).count) }
            return zip(pieces, [0] + pieces.map(\.end)).map { piece, start in
                guard start < piece.end else { return (piece.id, 0..<0) }
                return (piece.id, text[characters[start]..<characters[piece.end - 1] + 1].place)
            }
        }
    }

    /// Text without surrounding whitespace: Unicode's White_Space and the separators U+001C to U+001F. Training and
    /// every runner remove exactly these characters.
    static func stripped(_ text: String.UnicodeScalarView) -> String.UnicodeScalarView.SubSequence {
        guard let end = text.lastIndex(where: { !isBlank($0) }) else { return text.prefix(0) }
        return text[...end].drop(while: isBlank)
    }

    /// True for whitespace around a text.
    static func isBlank(_ scalar: Unicode.Scalar) -> Bool {
        scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
    }

    /// Numbers of tokens kept of each text of a pair. The longer text is truncated to the length of the shorter, then
    /// both equally. An odd token goes to the longer text, or to the second if both have the same length.
    static func longestFirst(_ first: Int, _ second: Int, room: Int) -> (Int, Int) {
        guard first + second > room else { return (first, second) }
        guard second > 0 else { return (room, 0) }
        let shorter = min(first, second)
        var longer = shorter > room ? shorter : max(shorter, room - shorter)
        var kept = shorter
        if kept + longer > room {
            kept = room / 2
            longer = kept + room % 2
        }
        return first > second ? (longer, kept) : (kept, longer)
    }

    private static func model(_ json: JSON) throws -> any TokenModel {
        switch json["type"].string {
        case "WordPiece": return try WordPiece(json)
        case "BPE": return try BytePairEncoding(json)
        case "Unigram": return try Unigram(json)
        default: throw EarlyExitError.failure("unknown model '\(json["type"].string ?? "")'")
        }
    }
}

/// Tokenizer model: converts one word to tokens.
protocol TokenModel: Sendable {
    func tokens(of word: ArraySlice<Unicode.Scalar>) -> [PieceOfWord]
}

/// A token of a word.
struct PieceOfWord {
    let id: Int32
    /// End of the token, in UTF-8 bytes of the word.
    let end: Int
}

/// UTF-8 bytes of a token, the key of every vocabulary. Canonically equivalent Strings are equal, but tokens are not.
struct Spelling: Hashable, Sendable {
    let bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
    }

    init(_ text: String) {
        bytes = ArraySlice(Array(text.utf8))
    }

    func hash(into hasher: inout Hasher) {
        bytes.withUnsafeBytes { hasher.combine(bytes: $0) }
    }
}

/// UTF-8 bytes of Unicode scalars.
func utf8(_ scalars: ArraySlice<Unicode.Scalar>) -> [UInt8] {
    var view = String.UnicodeScalarView()
    view.append(contentsOf: scalars)
    return Array(String(view).utf8)
}

extension JSON {
    /// Value as a token id; nil if it is none.
    var id: Int32? { int.flatMap(Int32.init(exactly:)) }
}
