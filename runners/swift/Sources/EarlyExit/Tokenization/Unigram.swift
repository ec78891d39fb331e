/// Unigram (ALBERT): splits a word into the tokens with the largest sum of scores.
struct Unigram: TokenModel {
    private var pieces: [Spelling: (id: Int32, score: Double)] = [:]
    private let unknown: Int32
    private var longestPiece = 0
    /// Score difference between the token with the lowest score and an unknown character.
    private static let unknownPenalty = 10.0
    private var unknownScore = 0.0

    init(_ json: JSON) throws {
        guard let vocabulary = json["vocab"].array, let unknown = json["unk_id"].id, json["byte_fallback"].bool != true
        else { throw EarlyExitError.failure("a Unigram model of another kind than ALBERT's") }
        self.unknown = unknown
        for (place, entry) in vocabulary.enumerated() {
            guard let token = entry.array?.first?.string, let score = entry.array?.last?.double else {
                throw EarlyExitError.failure("token \(place) has no score")
            }
            let spelling = Spelling(token)
            longestPiece = max(longestPiece, spelling.bytes.count)
            pieces[spelling] = (Int32(place), score)
            unknownScore = place == 0 ? score : min(unknownScore, score)
        }
        unknownScore -= Unigram.unknownPenalty
    }

    func tokens(of word: ArraySlice<Unicode.Scalar>) -> [PieceOfWord] {
        let bytes = utf8(word)
        /// Best segmentation up to each byte: its score, and start and id of its last token.
        var best = [(score: Double, start: Int, id: Int32)?](repeating: nil, count: bytes.count + 1)
        best[0] = (0, 0, unknown)
        var start = 0
        while start < bytes.count {
            let here = best[start]?.score ?? 0
            let next = start + Unigram.length(ofCharacter: bytes[start])
            var known = false
            for end in start + 1..<min(bytes.count, start + longestPiece) + 1 {
                guard let piece = pieces[Spelling(bytes[start..<end])] else { continue }
                known = known || end == next
                let score = here + piece.score
                if best[end].map({ score > $0.score }) ?? true { best[end] = (score, start, piece.id) }
            }
            if !known {
                let score = here + unknownScore
                if best[next].map({ score > $0.score }) ?? true { best[next] = (score, start, unknown) }
            }
            start = next
        }
        return trace(best)
    }

    /// Tokens of the best segmentation, traced from its end; adjacent unknown characters become one token.
    private func trace(_ best: [(score: Double, start: Int, id: Int32)?]) -> [PieceOfWord] {
        var found: [PieceOfWord] = []
        var at = best.count - 1
        while at > 0, let step = best[at] {
            if !(step.id == unknown && found.last?.id == unknown) { found.append(PieceOfWord(id: step.id, end: at)) }
            at = step.start
        }
        return found.reversed()
    }

    private static func length(ofCharacter first: UInt8) -> Int {
        first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
    }
}
