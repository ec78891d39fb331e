/// BPE: merges adjacent tokens of a word in the order of the merge ranks. At first, the tokens are bytes (byte-level BPE,
/// RoBERTa), or characters, and the bytes of unknown characters (byte fallback, mmBERT).
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
    /// With byte fallback: character -> token id.
    private var ofCharacter: [Unicode.Scalar: Int32]?

    init(_ json: JSON) throws {
        guard let vocabulary = json["vocab"].object, let list = json["merges"].array else {
            throw EarlyExitError.failure("a BPE model without vocab or merges")
        }
        let differs =
            (json["dropout"].double ?? 0) > 0 || json["ignore_merges"].bool == true
            || json["continuing_subword_prefix"].string?.isEmpty == false
            || json["end_of_word_suffix"].string?.isEmpty == false
        guard !differs else { throw EarlyExitError.failure("a BPE model of another kind than RoBERTa's or mmBERT's") }

        var ids: [Spelling: Int32] = [:]
        for (token, value) in vocabulary { ids[Spelling(token)] = value.id }
        let fallback = json["byte_fallback"].bool == true
        ofByte = try (0...255).map { byte in
            let name = fallback ? BytePairEncoding.fallback(for: byte) : BytePairEncoding.letter(for: byte)
            guard let id = ids[Spelling(name)] else {
                throw EarlyExitError.failure("a BPE model in which byte \(byte) has no token")
            }
            return id
        }
        if fallback {
            var characters: [Unicode.Scalar: Int32] = [:]
            for (token, value) in vocabulary where token.unicodeScalars.count == 1 {
                if let scalar = token.unicodeScalars.first { characters[scalar] = value.id }
            }
            ofCharacter = characters
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
        var symbols = symbols(of: word)
        guard !symbols.isEmpty else { return [] }
        var candidates = Heap()
        func offer(_ left: Int) {
            guard left >= 0, symbols[left].next < symbols.count else { return }
            let pair = Pair(left: symbols[left].id, right: symbols[symbols[left].next].id)
            if let merge = merges[pair] { candidates.push(Candidate(rank: merge.rank, place: left, pair: pair, id: merge.id)) }
        }
        for place in symbols.indices { offer(place) }
        while let best = candidates.pop() {
            let right = symbols[best.place].next
            guard symbols[best.place].id == best.pair.left, right < symbols.count, symbols[right].id == best.pair.right
            else { continue }  // merged meanwhile
            symbols[best.place].id = best.id
            symbols[best.place].end = symbols[right].end
            symbols[best.place].next = symbols[right].next
            symbols[right].id = -1
            if symbols[right].next < symbols.count { symbols[symbols[right].next].previous = best.place }
            offer(best.place)
            offer(symbols[best.place].previous)
        }
        return symbols.filter { $0.id >= 0 }.map { PieceOfWord(id: $0.id, end: $0.end) }
    }

    private struct Symbol {
        /// -1: merged into an earlier one.
        var id: Int32
        /// In UTF-8 bytes of the word.
        var end: Int
        var previous: Int
        var next: Int
    }

    /// The tokens before the first merge.
    private func symbols(of word: ArraySlice<Unicode.Scalar>) -> [Symbol] {
        var found: [Symbol] = []
        func append(_ id: Int32, bytes: Int) {
            let end = (found.last?.end ?? 0) + bytes
            found.append(Symbol(id: id, end: end, previous: found.count - 1, next: found.count + 1))
        }
        for scalar in word {
            let bytes = utf8([scalar])
            if let id = ofCharacter?[scalar] {
                append(id, bytes: bytes.count)
            } else {
                for byte in bytes { append(ofByte[Int(byte)], bytes: 1) }
            }
        }
        return found
    }

    /// A possible merge. The lowest rank comes first, then the first place.
    private struct Candidate {
        let rank: Int
        let place: Int
        let pair: Pair
        let id: Int32

        static func < (a: Candidate, b: Candidate) -> Bool { (a.rank, a.place) < (b.rank, b.place) }
    }

    /// Binary heap, the smallest candidate first.
    private struct Heap {
        private var items: [Candidate] = []

        mutating func push(_ item: Candidate) {
            items.append(item)
            var at = items.count - 1
            while at > 0, items[at] < items[(at - 1) / 2] {
                items.swapAt(at, (at - 1) / 2)
                at = (at - 1) / 2
            }
        }

        mutating func pop() -> Candidate? {
            guard let first = items.first, let last = items.popLast() else { return nil }
            if items.isEmpty { return first }
            items[0] = last
            var at = 0
            while true {
                let below = [2 * at + 1, 2 * at + 2].filter { $0 < items.count }.min { items[$0] < items[$1] }
                guard let below, items[below] < items[at] else { return first }
                items.swapAt(at, below)
                at = below
            }
        }
    }

    /// Name of the token of a byte with byte fallback.
    private static func fallback(for byte: Int) -> String {
        let digits = String(byte, radix: 16, uppercase: true)
        return "<0x\(digits.count < 2 ? "0" : "")\(digits)>"
    }

    /// Character that represents a byte in GPT-2's alphabet: printable bytes themselves, others characters from U+0100
    /// on.
    private static func letter(for byte: Int) -> String {
        let printable = { (byte: Int) in (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174 }
        let code = printable(byte) ? byte : 256 + (0..<byte).filter { !printable($0) }.count
        return String(Character(Unicode.Scalar(UInt32(code)) ?? " "))
    }
}
