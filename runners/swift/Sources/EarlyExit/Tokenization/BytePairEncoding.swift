/// Byte-level BPE (RoBERTa): merges adjacent tokens of a word, which starts as bytes, in the order of the merge ranks.
struct BytePairEncoding: TokenModel {
    private struct Pair: Hashable {
        let left: Int32
        let right: Int32
    }

    private struct Merge {
        let rank: Int
        let id: Int32
    }

    private var merges: [Pair: Merge] = [:]
    /// Byte -> token id.
    private let ofByte: [Int32]

    init(_ json: JSON) throws {
        guard let vocabulary = json["vocab"].object, let list = json["merges"].array else {
            throw EarlyExitError.failure("a BPE model without vocab or merges")
        }
        let differs =
            (json["dropout"].double ?? 0) > 0 || json["byte_fallback"].bool == true || json["ignore_merges"].bool == true
            || json["continuing_subword_prefix"].string?.isEmpty == false
            || json["end_of_word_suffix"].string?.isEmpty == false
        guard !differs else { throw EarlyExitError.failure("a BPE model of another kind than RoBERTa's") }

        var ids: [Spelling: Int32] = [:]
        for (token, value) in vocabulary { ids[Spelling(token)] = value.id }
        ofByte = try (0...255).map { byte in
            guard let id = ids[Spelling(BytePairEncoding.letter(for: byte))] else {
                throw EarlyExitError.failure("a BPE model that is not byte-level: byte \(byte) has no token")
            }
            return id
        }
        for (rank, merge) in list.enumerated() {
            let halves = merge.array?.compactMap(\.string) ?? merge.string?.split(separator: " ").map(String.init) ?? []
            guard halves.count == 2, let left = ids[Spelling(halves[0])], let right = ids[Spelling(halves[1])],
                let id = ids[Spelling(halves[0] + halves[1])]
            else { throw EarlyExitError.failure("merge \(rank) does not fit the vocabulary") }
            merges[Pair(left: left, right: right)] = Merge(rank: rank, id: id)
        }
    }

    func tokens(of word: ArraySlice<Unicode.Scalar>) -> [PieceOfWord] {
        var ids = utf8(word).map { ofByte[Int($0)] }
        var ends = Array(1...max(1, ids.count))
        while let (place, merge) = best(ids) {
            ids[place] = merge.id
            ids.remove(at: place + 1)
            ends.remove(at: place)
        }
        return zip(ids, ends).map(PieceOfWord.init)
    }

    /// First merge with the lowest rank.
    private func best(_ ids: [Int32]) -> (Int, Merge)? {
        var found: (Int, Merge)?
        for place in ids.indices.dropLast() {
            guard let merge = merges[Pair(left: ids[place], right: ids[place + 1])] else { continue }
            if let (_, before) = found, before.rank <= merge.rank { continue }
            found = (place, merge)
        }
        return found
    }

    /// Character that represents a byte in GPT-2's alphabet: printable bytes themselves, others characters from U+0100
    /// on.
    private static func letter(for byte: Int) -> String {
        let printable = { (byte: Int) in (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174 }
        let code = printable(byte) ? byte : 256 + (0..<byte).filter { !printable($0) }.count
        return String(Character(Unicode.Scalar(UInt32(code)) ?? " "))
    }
}
