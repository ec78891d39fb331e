/// Executor of a bundle's segments. Thread-safe.
public protocol SegmentExecutor: Sendable {
    /// Runs the embeddings segment on one input, and returns the runner of its layers.
    func embed(_ tokens: Tokens) async throws -> any LayerRunner

    /// Expected time until the segment of `layer` is loaded for an input of so many tokens, in seconds; 0 if it is
    /// loaded.
    func openingSeconds(_ layer: Int, tokens: Int) -> Double

    /// Executor of the graph at full depth without exits, which has only the last layer. nil if the bundle has none.
    func oneGraph() -> (any SegmentExecutor)?

    /// Frees the models. A later call loads them again.
    func unload()
}

extension SegmentExecutor {
    public func openingSeconds(_ layer: Int, tokens: Int) -> Double { 0 }

    public func oneGraph() -> (any SegmentExecutor)? { nil }

    public func unload() {}

    /// Runs the segments of the embeddings and of `exits` once, on an input of `length` tokens.
    func run(exits: [Int], length: Int, padTokenId: Int) async throws {
        let run = try await embed(Tokens(repeating: Int32(clamping: padTokenId), count: length))
        for layer in exits { _ = try await run.layer(layer) }
    }
}

/// Runs the layers for one input. Used by one task at a time.
public protocol LayerRunner: AnyObject {
    /// Runs the segment that ends with `layer`, one of the manifest's `exits`. Call it once per exit, in ascending
    /// order.
    func layer(_ layer: Int) async throws -> LayerOutput
}

/// Output of one exit.
public struct LayerOutput: Equatable, Sendable {
    /// One logit per class or label; the value for regression. For tokens those of all tokens, padding included, one
    /// token after the other.
    public let logits: [Float]
    /// LTE certainty; nil if the model has no LTE module.
    public let lte: Float?

    public init(logits: [Float], lte: Float?) {
        self.logits = logits
        self.lte = lte
    }

    /// Throws unless the logits are finite and the LTE certainty is in [0, 1].
    func check(layer: Int) throws {
        guard logits.allSatisfy(\.isFinite) else {
            throw EarlyExitError.failure("layer \(layer): logits are not finite: \(logits). Export the bundle again")
        }
        guard lte.map({ (0...1).contains($0) }) ?? true else {
            throw EarlyExitError.failure(
                "layer \(layer): the LTE certainty \(lte ?? .nan) is not in [0, 1]. Export the bundle again")
        }
    }
}

/// Rule that decides about exits: an ExitPolicy, a policy with a deadline, or full depth.
public protocol StopRule {
    /// True if the input exits at `layer` with this certainty and these logits of its first decision.
    mutating func stops(after layer: Int, certainty: Float, logits: [Float]) -> Bool
}

/// Rule that exits at the last layer only.
struct FullDepth: StopRule {
    mutating func stops(after layer: Int, certainty: Float, logits: [Float]) -> Bool { false }
}

/// Exit loop: each call of `next` computes one exit, until the rule is satisfied.
struct ExitLoop {
    struct Step {
        let layer: Int
        /// Logits of the decisions of the input.
        let decisions: [[Float]]
        let certainty: Float
        /// True if the input exits at this layer.
        let exits: Bool
    }

    private let run: any LayerRunner
    private let policy: ExitPolicy
    private let decisions: @Sendable (LayerOutput, Int) throws -> [[Float]]
    private var rule: any StopRule
    private var memory: ExitPolicy.Memory?
    /// Exits that are not computed yet.
    private var ahead: ArraySlice<Int>

    /// Runs the embeddings. `exits`: layers with an exit. `policy` computes the certainty, `rule` decides about the
    /// exit. `decisions`: those of the input, from the output of a layer.
    init(
        executor: any SegmentExecutor, tokens: Tokens, exits: [Int], policy: ExitPolicy, rule: any StopRule,
        decisions: @escaping @Sendable (LayerOutput, Int) throws -> [[Float]]
    ) async throws {
        try Task.checkCancellation()
        self.decisions = decisions
        self.policy = policy
        self.rule = rule
        ahead = exits[...]
        run = try await executor.embed(tokens)
    }

    /// Result of the next exit; nil after the exit of the input. Throws CancellationError if the task is cancelled.
    mutating func next() async throws -> Step? {
        guard let layer = ahead.popFirst() else { return nil }
        try Task.checkCancellation()
        let output = try await run.layer(layer)
        try output.check(layer: layer)
        let decisions = try decisions(output, layer)
        let certainty = try policy.certainty(layer: layer, decisions: decisions, lte: output.lte, memory: &memory)
        let exits = rule.stops(after: layer, certainty: certainty, logits: decisions[0]) || ahead.isEmpty
        if exits { ahead = [] }
        return Step(layer: layer, decisions: decisions, certainty: certainty, exits: exits)
    }
}
