/// WordPiece (BERT, DistilBERT): repeatedly splits off the longest prefix of a word that is in the vocabulary.
struct WordPiece: TokenModel {
    /// Tokens at the beginning of a word, and tokens inside a word without their prefix "##".
    private var beginnings: [Spelling: Int32] = [:]
    private var continuations: [Spelling: Int32] = [:]
    private let unknown: Int32
    private let longestWord: Int
    private var longestPiece = 0

    init(_ json: JSON) throws {
        guard let vocabulary = json["vocab"].object, let unknownToken = json["unk_token"].string,
            let unknown = json["vocab"][unknownToken].id
        else { throw EarlyExitError.failure("a WordPiece model without vocab or unk_token") }
        self.unknown = unknown
        longestWord = json["max_input_chars_per_word"].int ?? 100
        let prefix = Array((json["continuing_subword_prefix"].string ?? "##").utf8)
        for (token, value) in vocabulary {
            guard let id = value.id else { throw EarlyExitError.failure("token '\(token)' has no id") }
            let bytes = Array(token.utf8)
            longestPiece = max(longestPiece, bytes.count)
            beginnings[Spelling(bytes[...])] = id
            if bytes.starts(with: prefix) { continuations[Spelling(bytes[prefix.count...])] = id }
        }
    }

    func tokens(of word: ArraySlice<Unicode.Scalar>) -> [PieceOfWord] {
        let bytes = utf8(word)
        let whole = [PieceOfWord(id: unknown, end: bytes.count)]
        guard word.count <= longestWord else { return whole }
        var found: [PieceOfWord] = []
        var start = 0
        while start < bytes.count {
            let pieces = start == 0 ? beginnings : continuations
            var end = min(bytes.count, start + longestPiece)
            var id: Int32?
            while end > start {
                id = pieces[Spelling(bytes[start..<end])]
                if id != nil { break }
                end -= 1
            }
            guard let id else { return whole }
            found.append(PieceOfWord(id: id, end: end))
            start = end
        }
        return found
    }
}
