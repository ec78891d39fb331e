/// Added tokens, such as "[SEP]", which are matched in the text before pre-tokenization.
struct AddedTokens: Sendable {
    enum Piece {
        /// An added token, and its place in the source.
        case token(Int32, Range<Int>)
        case text(AlignedText)
    }

    private struct Token: Sendable {
        let id: Int32
        let content: [Unicode.Scalar]
        let singleWord: Bool
        let takesLeftBlanks: Bool
        let takesRightBlanks: Bool
    }

    /// Tokens matched before (`raw`) and after normalization, longest first: of two matches at one place, the longer
    /// wins.
    private let raw: [Token]
    private let normalized: [Token]

    init(_ json: JSON, normalizer: Normalizer) throws {
        var raw: [Token] = []
        var normalized: [Token] = []
        for item in json.array ?? [] {
            guard let id = item["id"].id, let content = item["content"].string, !content.isEmpty else {
                throw EarlyExitError.failure("an added token without id or content")
            }
            let isNormalized = item["normalized"].bool ?? false
            let scalars = Array(content.unicodeScalars)
            let token = Token(
                id: id, content: isNormalized ? normalizer.apply(scalars) : scalars,
                singleWord: item["single_word"].bool ?? false, takesLeftBlanks: item["lstrip"].bool ?? false,
                takesRightBlanks: item["rstrip"].bool ?? false)
            // As in the Python runtime: an empty token would match everywhere, and of two equal ones the library
            // chooses one at random.
            guard !token.content.isEmpty else {
                throw EarlyExitError.failure("the added token with id \(id) is empty after normalization")
            }
            if isNormalized, let equal = normalized.first(where: { $0.content == token.content }) {
                throw EarlyExitError.failure(
                    "the added tokens with ids \(equal.id) and \(id) are equal after normalization")
            }
            if isNormalized { normalized.append(token) } else { raw.append(token) }
        }
        self.raw = raw.sorted { $0.content.count > $1.content.count }
        self.normalized = normalized.sorted { $0.content.count > $1.content.count }
    }

    /// Number of characters of the longest token.
    var longest: Int { (raw + normalized).map(\.content.count).max() ?? 0 }

    /// Splits the text at its added tokens, and normalizes the parts between them.
    func split(_ text: AlignedText, normalizer: Normalizer) -> [Piece] {
        AddedTokens.split(text, at: raw).flatMap { piece -> [Piece] in
            guard case .text(let part) = piece else { return [piece] }
            return AddedTokens.split(normalizer.apply(part), at: normalized)
        }
    }

    /// The matches do not overlap, but blanks that one takes may belong to the next match, which is then found, too.
    private static func split(_ whole: AlignedText, at tokens: [Token]) -> [Piece] {
        let text = whole.scalars
        guard !tokens.isEmpty else { return text.isEmpty ? [] : [.text(whole)] }
        var pieces: [Piece] = []
        var done = text.startIndex  // the text before this index is already split
        var at = text.startIndex
        while at < text.endIndex {
            guard let token = tokens.first(where: { text[at...].starts(with: $0.content) }) else {
                at += 1
                continue
            }
            var start = at
            var end = at + token.content.count
            at = end
            if token.singleWord, isWord(text, start - 1) || isWord(text, end) { continue }
            if token.takesLeftBlanks {
                while start > text.startIndex, text[start - 1].properties.isWhitespace { start -= 1 }
                start = max(start, done)
            }
            if token.takesRightBlanks {
                while end < text.endIndex, text[end].properties.isWhitespace { end += 1 }
            }
            if done < start { pieces.append(.text(whole[done..<start])) }
            pieces.append(.token(token.id, whole[start..<end].place))
            done = end
        }
        if done < text.endIndex { pieces.append(.text(whole[done..<text.endIndex])) }
        return pieces
    }

    private static func isWord(_ text: ArraySlice<Unicode.Scalar>, _ place: Int) -> Bool {
        guard text.indices.contains(place) else { return false }
        let properties = text[place].properties
        return properties.isAlphabetic || properties.numericType == .decimal || properties.isJoinControl
            || text[place].isMark || properties.generalCategory == .connectorPunctuation
    }
}
