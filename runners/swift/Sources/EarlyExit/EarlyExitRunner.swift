/// Runs a bundle layer by layer until the exit policy is satisfied. Thread-safe.
///
///     let runner = try await EarlyExitRunner.load(folder)
///     try await runner.predict("turn the kitchen lights off").label
public final class EarlyExitRunner: Sendable {
    public let bundle: ModelBundle
    let executor: any SegmentExecutor
    /// Layers with an exit.
    let exits: [Int]
    private let tokenizer: Tokenizer
    private let clock: @Sendable () -> Double
    private let estimator: StepEstimator

    /// Creates a runner from a bundle and an executor of its segments. Apps call `load` instead.
    ///
    /// `missProbability`: maximum share of calls that miss their deadline although their first exit was in time.
    public convenience init(
        bundle: ModelBundle, executor: any SegmentExecutor, missProbability: Double = 0.01
    ) throws {
        try self.init(bundle: bundle, executor: executor, missProbability: missProbability, clock: now)
    }

    /// `exits`: layers with an exit; nil: those of the bundle. `clock` returns seconds.
    init(
        bundle: ModelBundle, executor: any SegmentExecutor, exits: [Int]? = nil,
        missProbability: Double = StepEstimator.missProbability, clock: @escaping @Sendable () -> Double
    ) throws {
        estimator = try StepEstimator(missProbability: missProbability)
        self.bundle = bundle
        self.executor = executor
        self.clock = clock
        self.exits = exits ?? bundle.manifest.exits
        tokenizer = try bundle.readTokenizer()
    }

    public var manifest: Manifest { bundle.manifest }

    /// Predicts one text, or one pair.
    ///
    /// `threshold` replaces the calibrated threshold at every layer. `deadlineMs`: milliseconds from the call; the
    /// input exits at the latest at the deepest exit that is expected in time, or at the first exit if none is.
    ///
    /// `heads`: of a model with named heads, those that are needed; nil: all. The text exits when they are certain, and the
    /// prediction contains only them.
    ///
    /// Throws for an empty text, a threshold or deadline out of range, or an unknown head. Throws CancellationError before the next
    /// segment if the task is cancelled.
    public func predict(
        _ text: String, _ pair: String? = nil, threshold: Double? = nil, deadlineMs: Double? = nil, heads: [String]? = nil
    ) async throws -> Prediction {
        try await predictions([(text, pair)], threshold: threshold, deadlineMs: deadlineMs, heads: heads)[0]
    }

    /// Predicts texts and returns the predictions in input order.
    ///
    /// CoreML segments accept one row, so the texts run one after another. `deadlineMs` applies to the whole batch:
    /// each text gets an equal share of the remaining time.
    ///
    /// Throws the errors of `predict`, before any text is predicted, and for an empty batch.
    public func predictBatch(
        _ texts: [String], threshold: Double? = nil, deadlineMs: Double? = nil, heads: [String]? = nil
    ) async throws -> [Prediction] {
        try await predictions(texts.map { ($0, nil) }, threshold: threshold, deadlineMs: deadlineMs, heads: heads)
    }

    /// Predicts pairs of texts, as `predictBatch` predicts texts.
    public func predictBatch(
        _ pairs: [(String, String)], threshold: Double? = nil, deadlineMs: Double? = nil, heads: [String]? = nil
    ) async throws -> [Prediction] {
        try await predictions(pairs.map { ($0, $1) }, threshold: threshold, deadlineMs: deadlineMs, heads: heads)
    }

    /// Predictions at every exit, from the first to the last. A layer runs when the sequence reaches it: break out of
    /// the `for try await` loop to skip deeper layers.
    ///
    /// Throws for an empty text, in this call and not at the first iteration.
    public func stream(_ text: String, _ pair: String? = nil) throws -> PredictionStream {
        let start = clock()
        let tokens = try encode(text, pair, named: "the text")
        return PredictionStream {
            try await self.loop(tokens, self.manifest.policy, FullDepth(), self.manifest.model.heads)
        } prediction: {
            self.prediction($0, self.manifest.policy, tokens, self.manifest.model.heads, start)
        }
    }

    /// Runs every segment twice at every input length of the bundle, so that later predictions are fast. `load` does this
    /// by default.
    public func warmUp() async throws {
        let lengths = manifest.lengths.isEmpty ? [manifest.model.maxLength] : manifest.lengths
        for length in lengths + lengths {
            try await executor.run(exits: exits, length: length, padTokenId: manifest.model.padTokenId)
        }
    }

    /// Runner of the same bundle that predicts at full depth, with one graph (without exits): one call of CoreML instead
    /// of one per segment. nil if the bundle does not contain this graph.
    public func oneGraph() throws -> EarlyExitRunner? {
        try executor.oneGraph().map {
            try EarlyExitRunner(bundle: bundle, executor: $0, exits: [manifest.model.layers], clock: clock)
        }
    }

    /// Frees the models, for example when the system warns about low memory. The next call loads them again.
    public func unload() {
        executor.unload()
    }

    /// Runs the golden inputs of the bundle through every layer on this device. Returns the largest difference from the
    /// checkpoint at each exit; differences of logits are divided by `manifest.parity.scale`.
    ///
    /// Throws if a file differs from its sha256, or a difference is larger than the bundle allows. Do not ship the bundle
    /// in this case.
    @discardableResult
    public func verify() async throws -> [Double] {
        try bundle.verifyModels()
        let found = try await bundle.readGolden().differences(
            executor: executor, tokenizer: tokenizer, exits: exits, scale: manifest.parity.scale)
        guard let (layer, worst) = zip(exits, found).max(by: { $0.1 < $1.1 }), worst > manifest.parity.atol else {
            return found
        }
        throw EarlyExitError.failure(
            "\(bundle.folder.path): on this device layer \(layer) is off the checkpoint by \(worst), at most"
                + " \(manifest.parity.atol) is allowed. Try other compute units, or export again with --precision fp32")
    }

    private func predictions(
        _ texts: [(String, String?)], threshold: Double?, deadlineMs: Double?, heads: [String]?
    ) async throws -> [Prediction] {
        let start = clock()
        guard !texts.isEmpty else { throw EarlyExitError.input("the batch is empty: give at least one text") }
        let policy = try threshold.map(manifest.policy.with(threshold:)) ?? manifest.policy
        let requested = try manifest.model.requested(heads)
        let end = try deadlineMs.map { try Deadline.end(of: $0, start: start) }
        let rows = try texts.enumerated().map { row, text in
            try encode(text.0, text.1, named: texts.count > 1 ? "text \(row)" : "the text", end: end ?? .infinity)
        }
        var found: [Prediction] = []
        for (row, tokens) in rows.enumerated() {
            let begin = clock()
            let rule = end.map { end -> any StopRule in
                deadline(policy, tokens, end: begin + (end - begin) / Double(rows.count - row))
            }
            var loop = try await loop(tokens, policy, rule ?? policy, requested)
            var last: ExitLoop.Step?
            while let step = try await loop.next() { last = step }
            guard let last else { preconditionFailure("a manifest has at least one exit") }
            found.append(prediction(last, policy, tokens, requested, start, deadlineMs: deadlineMs))
        }
        return found
    }

    /// `requested`: the named heads that decide.
    private func loop(
        _ tokens: Tokens, _ policy: ExitPolicy, _ rule: any StopRule, _ requested: [NamedHead]
    ) async throws -> ExitLoop {
        let model = manifest.model
        return try await ExitLoop(executor: executor, tokens: tokens, exits: exits, policy: policy, rule: rule) {
            try model.decisions($0.logits, words: tokens.words, requested: requested, layer: $1)
        }
    }

    private func deadline(_ policy: ExitPolicy, _ tokens: Tokens, end: Double) -> Deadline {
        Deadline(
            policy: policy, exits: exits, end: end, estimator: estimator,
            opening: { [executor] in executor.openingSeconds($0, tokens: tokens.count) }, clock: clock)
    }

    /// Tokenizes an input. Throws for a single text if the model expects pairs, and for a pair if it expects single
    /// texts.
    private func encode(
        _ text: String, _ pair: String?, named name: String, end: Double = .infinity
    ) throws -> Tokens {
        guard (pair != nil) == manifest.model.takesPairs else {
            let (takes, given) =
                manifest.model.takesPairs ? ("pairs of texts", "one text") : ("single texts", "a pair")
            throw EarlyExitError.input("this model expects \(takes) (\(manifest.model.task)), but was given \(given)")
        }
        for part in [text, pair].compactMap({ $0 })
        where Tokenizer.stripped(part.unicodeScalars).isEmpty {
            throw EarlyExitError.input("\(name) is empty: give at least one character that is not whitespace")
        }
        return tokenizer.encode(text, pair, end: end, clock: clock)
    }

    private func prediction(
        _ step: ExitLoop.Step, _ policy: ExitPolicy, _ tokens: Tokens, _ requested: [NamedHead], _ start: Double,
        deadlineMs: Double? = nil
    ) -> Prediction {
        let model = manifest.model
        let decisions = step.decisions.map { policy.scaled($0, layer: step.layer) }
        let described = model.describe(decisions, words: tokens.words, requested: requested)
        var stoppedBy: StoppedBy?
        var policy = policy
        if step.layer == exits.last {
            stoppedBy = .lastLayer
        } else if step.exits {
            let certain = policy.stops(after: step.layer, certainty: step.certainty, logits: step.decisions[0])
            stoppedBy = certain ? .certainty : .deadline
        }
        let latencyMs = 1e3 * (clock() - start)
        return Prediction(
            label: described.label,
            value: described.value,
            scores: described.scores,
            labels: described.labels,
            spans: described.spans,
            heads: described.heads,
            exitLayer: step.layer,
            certainty: step.certainty,
            latencyMs: latencyMs,
            truncated: tokens.truncated,
            stoppedBy: stoppedBy,
            late: deadlineMs.map { latencyMs > $0 },
            model: bundle.digest)
    }
}
