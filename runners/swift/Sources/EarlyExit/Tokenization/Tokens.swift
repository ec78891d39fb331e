/// One tokenized input for the embeddings segment.
public struct Tokens: Equatable, Sendable {
    public internal(set) var inputIds: [Int32] = []
    public internal(set) var tokenTypeIds: [Int32] = []
    /// 1 for a token, 0 for padding.
    public internal(set) var attentionMask: [Int32] = []
    /// True if the text was truncated.
    public internal(set) var truncated = false
    /// The words of the text, if the model labels words.
    var words: Words?

    public var count: Int { inputIds.count }

    init() {}

    /// `count` equal tokens, for warm-up.
    init(repeating id: Int32, count: Int) {
        for _ in 0..<count { append(id, type: 0) }
    }

    mutating func append(_ id: Int32, type: Int32) {
        inputIds.append(id)
        tokenTypeIds.append(type)
        attentionMask.append(1)
    }

    /// The shortest of these lengths that is sufficient for `count` tokens; `count` if `lengths` is empty.
    static func length(for count: Int, of lengths: [Int]) throws -> Int {
        guard !lengths.isEmpty else { return count }
        guard let length = lengths.filter({ $0 >= count }).min() else {
            throw EarlyExitError.failure(
                "\(count) tokens are more than the segments accept (\(lengths.max() ?? 0)). Export the bundle again")
        }
        return length
    }

    /// Tokens padded on the right to the next of these lengths; unchanged if `lengths` is empty.
    public func padded(toOneOf lengths: [Int], padTokenId: Int32) throws -> Tokens {
        let length = try Tokens.length(for: count, of: lengths)
        var filled = self
        filled.inputIds += [Int32](repeating: padTokenId, count: length - count)
        filled.tokenTypeIds += [Int32](repeating: 0, count: length - count)
        filled.attentionMask += [Int32](repeating: 0, count: length - count)
        return filled
    }
}
