import Foundation

/// Reads tokenizer.json (Hugging Face tokenizers) and gives the ids that training saw.
///
/// It knows what the four families have: BERT's and DistilBERT's WordPiece, RoBERTa's byte-level BPE, ALBERT's Unigram.
/// Anything else in the file is an error, never a guess.
public struct Tokenizer: Sendable {
    private let addedTokens: AddedTokens
    private let normalizer: Normalizer
    private let preTokenizer: PreTokenizer
    private let model: any TokenModel
    private let template: Template
    private let maxLength: Int
    /// Words at the end of a prefix that the rest of the text may change: two, or as many as an added token may span.
    private let openWords: Int

    /// Characters of a long text that are tokenized first, per token that the model accepts.
    private static let charactersPerToken = 6
    /// Up to this length per token that the model accepts, the tokens of both texts of a pair are counted, to give the
    /// odd token to the longer one.
    private static let countedCharactersPerToken = 32
    /// Factor by which the prefix of a long text grows until it contains enough tokens.
    private static let growth = 2

    /// `maxLength`: tokens that one input may have, special tokens included. The file's own truncation and padding
    /// are not used: the manifest says what the model takes.
    public init(file: URL, maxLength: Int) throws {
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
        openWords = max(2, addedTokens.longest)
    }

    /// Ids and types of one text or a pair, without the whitespace around each, truncated to what the model accepts, the
    /// longer text of a pair first. Only as much of a long text is read as that takes.
    ///
    /// `end`: seconds on `clock` after which no longer prefix of a text is read; a text that would need one is truncated
    /// to the tokens found so far.
    public func encode(_ text: String, _ pair: String? = nil, end: Double = .infinity) -> Tokens {
        encode(text, pair, end: end, clock: now)
    }

    func encode(_ text: String, _ pair: String?, end: Double, clock: () -> Double) -> Tokens {
        let text = String(Tokenizer.stripped(text.unicodeScalars))
        let pair = pair.map { String(Tokenizer.stripped($0.unicodeScalars)) }
        let pieces = pair == nil ? template.single : template.pair
        let room = max(maxLength - pieces.filter(\.isSpecial).count, 0)
        let firstFound = ids(of: text, room: room, end: end, clock: clock)
        let secondFound = pair.map { ids(of: $0, room: room, end: end, clock: clock) } ?? (ids: [], whole: true)
        var (first, second) = (firstFound.ids, secondFound.ids)
        var counts = (first.count, second.count)
        if let pair, min(counts.0, counts.1) > room, !(firstFound.whole && secondFound.whole) {
            let characters = (text.unicodeScalars.count, pair.unicodeScalars.count)
            if max(characters.0, characters.1) <= Tokenizer.countedCharactersPerToken * maxLength && clock() < end {
                counts.0 = ids(of: text, room: .max, end: end, clock: clock).ids.count
                counts.1 = ids(of: pair, room: .max, end: end, clock: clock).ids.count
            } else {  // their tokens are not counted: characters decide
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
            case .first(let type): first.forEach { tokens.append($0, type: type) }
            case .second(let type): second.forEach { tokens.append($0, type: type) }
            }
        }
        tokens.truncated = cut
        return tokens
    }

    /// All ids of a text; of a long text, those of a prefix that has more than `room`. `whole`: whether nothing is left.
    ///
    /// Normalization and pre-tokenization look at most one word ahead, and the model reads one word at a time: the ids of
    /// a prefix without its last words are the first ids of the text.
    private func ids(
        of text: String, room: Int, end: Double, clock: () -> Double
    ) -> (ids: [Int32], whole: Bool) {
        let scalars = Array(text.unicodeScalars)
        var length = Tokenizer.charactersPerToken * maxLength
        while length < scalars.count {
            let begin = clock()
            let words = words(of: Array(scalars[..<length]))
            let found = words.dropLast(openWords).flatMap(ids(of:))
            let time = clock()
            if found.count > room { return (found, false) }
            if time + Double(Tokenizer.growth) * (time - begin) > end { return (words.flatMap(ids(of:)), false) }
            length *= Tokenizer.growth
        }
        return (words(of: scalars).flatMap(ids(of:)), true)
    }

    /// An added token, or a word that the model reads as a whole.
    private enum Word {
        case token(Int32)
        case text(ArraySlice<Unicode.Scalar>)
    }

    private func words(of scalars: [Unicode.Scalar]) -> [Word] {
        addedTokens.split(scalars, normalizer: normalizer).flatMap { piece -> [Word] in
            switch piece {
            case .token(let id): return [.token(id)]
            case .text(let scalars): return preTokenizer.words(scalars).map(Word.text)
            }
        }
    }

    private func ids(of word: Word) -> [Int32] {
        switch word {
        case .token(let id): return [id]
        case .text(let scalars): return model.ids(of: scalars)
        }
    }

    /// Without surrounding whitespace: Unicode's White_Space, and the four separators U+001C to U+001F. Training and
    /// every runner strip exactly these.
    static func stripped(_ text: String.UnicodeScalarView) -> String.UnicodeScalarView.SubSequence {
        let isBlank = { (scalar: Unicode.Scalar) in
            scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
        }
        guard let end = text.lastIndex(where: { !isBlank($0) }) else { return text.prefix(0) }
        return text[...end].drop(while: isBlank)
    }

    /// How many tokens of each half stay: the longer is cut down to the shorter, then both alike (the odd one to the
    /// longer; of equals, to the second).
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

/// What makes ids of one word.
protocol TokenModel: Sendable {
    func ids(of word: ArraySlice<Unicode.Scalar>) -> [Int32]
}

/// A token's UTF-8, the key of every vocabulary: Strings are equal when they are canonically equivalent, tokens are not.
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

/// The UTF-8 of scalars.
func utf8(_ scalars: ArraySlice<Unicode.Scalar>) -> [UInt8] {
    var view = String.UnicodeScalarView()
    view.append(contentsOf: scalars)
    return Array(String(view).utf8)
}

extension JSON {
    /// A token id.
    var id: Int32? { int.flatMap(Int32.init(exactly:)) }
}
