/// Content of golden.json: inputs with the checkpoint's outputs at every exit, to check a device. B samples, n layers.
struct Golden: Sendable {
    /// One text per sample, or two for a pair.
    let texts: [[String]]
    /// Expected token ids of each sample, without padding.
    let inputIds: [[Int]]
    let tokenTypeIds: [[Int]]
    /// B x n x classes, for tokens B x n x (S x classes); layers without an exit in the bundle are ignored.
    let logits: [[[Double]]]
    /// B x n LTE certainty; nil if the model has no LTE module.
    let lte: [[Double]]?
    /// Texts with their token ids that detect a deviating tokenizer. Segments do not run on them.
    let tokenization: [TokenizedText]

    struct TokenizedText: Sendable {
        let texts: [String]
        let inputIds: [Int]
        let tokenTypeIds: [Int]

        /// True if the tokenizer returns these token ids.
        func agrees(with tokenizer: Tokenizer) -> Bool {
            let tokens = tokenizer.encode(texts[0], texts.count == 2 ? texts[1] : nil)
            return tokens.inputIds.map(Int.init) == inputIds && tokens.tokenTypeIds.map(Int.init) == tokenTypeIds
        }
    }

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(json, at: place, needed: ["texts", "input_ids", "token_type_ids", "logits", "lte"],
            optional: ["tokenization"])
        texts = try fields.items("texts") { try Golden.row($0, \.string, $1) }
        inputIds = try fields.items("input_ids") { try Golden.row($0, \.int, $1) }
        tokenTypeIds = try fields.items("token_type_ids") { try Golden.row($0, \.int, $1) }
        logits = try fields.items("logits") { sample, place in
            try Fields.typed(sample, \.array, at: place).map { try Golden.logits($0, place) }
        }
        lte = fields.has("lte") ? try fields.items("lte") { try Golden.row($0, \.double, $1) } : nil
        tokenization = fields.has("tokenization") ? try fields.items("tokenization", Golden.tokenized) : []
        let rows = [inputIds.count, tokenTypeIds.count, logits.count, lte?.count ?? texts.count]
        guard rows.allSatisfy({ $0 == texts.count }), texts.allSatisfy({ (1...2).contains($0.count) }) else {
            throw EarlyExitError.failure("\(place): its lists have different lengths. Export the bundle again")
        }
    }

    private static func tokenized(_ json: JSON, _ place: String) throws -> TokenizedText {
        let fields = try Fields(json, at: place, needed: ["texts", "input_ids", "token_type_ids"])
        let texts = try fields.list("texts", \.string)
        guard (1...2).contains(texts.count) else { throw Fields.misfit(at: place) }
        return try TokenizedText(
            texts: texts, inputIds: fields.list("input_ids", \.int), tokenTypeIds: fields.list("token_type_ids", \.int))
    }

    private static func row<T>(_ json: JSON, _ type: KeyPath<JSON, T?>, _ place: String) throws -> [T] {
        try Fields.typed(json, \.array, at: place).map { try Fields.typed($0, type, at: place) }
    }

    /// Logits of an exit: numbers, or for tokens a list of them per token.
    private static func logits(_ json: JSON, _ place: String) throws -> [Double] {
        try Fields.typed(json, \.array, at: place).flatMap { each in
            try each.array == nil ? [Fields.typed(each, \.double, at: place)] : row(each, \.double, place)
        }
    }

    /// Largest difference at each of `exits`, over the logits (divided by `scale`) and LTE certainty of all samples.
    ///
    /// Throws if token ids differ from those at export.
    func differences(
        executor: any SegmentExecutor, tokenizer: Tokenizer, exits: [Int], scale: Double
    ) async throws -> [Double] {
        let layers = exits.last ?? 0
        var largest = [Double](repeating: 0, count: exits.count)
        if let text = tokenization.first(where: { !$0.agrees(with: tokenizer) }) {
            throw EarlyExitError.failure(
                "the token ids of '\(text.texts[0].prefix(60))' differ from those at export. Export the bundle again")
        }
        for (row, text) in texts.enumerated() {
            let tokens = tokenizer.encode(text[0], text.count == 2 ? text[1] : nil)
            guard tokens.inputIds.map(Int.init) == inputIds[row],
                tokens.tokenTypeIds.map(Int.init) == tokenTypeIds[row]
            else {
                throw EarlyExitError.failure(
                    "golden sample \(row): the token ids differ from those at export. Export the bundle again")
            }
            guard logits[row].count == layers, lte.map({ $0[row].count == layers }) ?? true else {
                throw Golden.misfit(row)
            }
            let run = try await executor.embed(tokens)
            for (place, layer) in exits.enumerated() {
                let output = try await run.layer(layer)
                let expected = logits[row][layer - 1]
                // For tokens, the output contains those of the padding, too.
                let (count, needed) = (output.logits.count, expected.count)
                guard tokens.words == nil ? count == needed : count >= needed else { throw Golden.misfit(row) }
                var found = zip(output.logits, expected).map { abs(Double($0) - $1) / scale }
                if let lte = lte?[row][layer - 1], let given = output.lte { found.append(abs(Double(given) - lte)) }
                // NaN counts as an infinite difference
                let worst = found.contains(where: \.isNaN) ? .infinity : found.max() ?? 0
                largest[place] = max(largest[place], worst)
            }
        }
        return largest
    }

    private static func misfit(_ row: Int) -> EarlyExitError {
        .failure("golden sample \(row): its outputs do not fit the model's. Export the bundle again")
    }
}
