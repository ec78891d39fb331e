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
    }

    /// Ids and types of one text or a pair, without the whitespace around each. What is longer than the model takes is cut, the longer half of a pair first.
    public func encode(_ text: String, _ pair: String? = nil) -> Tokens {
        var first = ids(of: text)
        var second = pair.map(ids(of:)) ?? []
        let pieces = pair == nil ? template.single : template.pair
        let room = max(maxLength - pieces.filter(\.isSpecial).count, 0)
        let kept = Tokenizer.longestFirst(first.count, second.count, room: room)
        let cut = kept != (first.count, second.count)
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

    private func ids(of text: String) -> [Int32] {
        addedTokens.split(Array(Tokenizer.stripped(text.unicodeScalars)), normalizer: normalizer).flatMap { piece -> [Int32] in
            switch piece {
            case .token(let id): return [id]
            case .text(let scalars): return preTokenizer.words(scalars).flatMap(model.ids(of:))
            }
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
