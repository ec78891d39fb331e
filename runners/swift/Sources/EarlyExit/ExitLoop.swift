/// What runs a bundle's segments. Safe to call from several threads.
public protocol SegmentExecutor: Sendable {
    /// Runs the embeddings segment on one input; what it returns runs the layers.
    func embed(_ tokens: Tokens) throws -> any LayerRunner
}

/// One input on its way through the layers. Used by one thread at a time.
public protocol LayerRunner: AnyObject {
    /// Runs the segment that ends with `layer`, one of the manifest's `exits`; each once, in their order.
    func layer(_ layer: Int) throws -> LayerOutput
}

/// What one exit says.
public struct LayerOutput: Equatable, Sendable {
    /// One per class, or the value for regression.
    public let logits: [Float]
    /// The learned certainty, where the model has it.
    public let lte: Float?

    public init(logits: [Float], lte: Float?) {
        self.logits = logits
        self.lte = lte
    }

    /// Throws unless the logits are finite and the learned certainty is in [0, 1].
    func check(layer: Int) throws {
        guard logits.allSatisfy(\.isFinite) else {
            throw EarlyExitError.failure("layer \(layer): logits are not finite: \(logits). Export the bundle again")
        }
        guard lte.map((0...1).contains) ?? true else {
            throw EarlyExitError.failure(
                "layer \(layer): the LTE certainty \(lte ?? .nan) is not in [0, 1]. Export the bundle again")
        }
    }
}

/// When to stop: an ExitPolicy, one under a deadline, or never before the last layer.
public protocol StopRule {
    /// Whether `layer`, with this certainty, answers.
    mutating func stops(after layer: Int, certainty: Float) -> Bool
}

/// Never before the last exit.
struct FullDepth: StopRule {
    mutating func stops(after layer: Int, certainty: Float) -> Bool { false }
}

/// The exit loop: exit after exit, one for each call of `next`, until the rule is satisfied.
struct ExitLoop {
    struct Step {
        let layer: Int
        let logits: [Float]
        let certainty: Float
        /// Whether this layer answers, sure or last.
        let exits: Bool
    }

    private let run: any LayerRunner
    private let policy: ExitPolicy
    private var rule: any StopRule
    private var memory: ExitPolicy.Memory?
    /// The exits that are still to come.
    private var ahead: ArraySlice<Int>

    /// Runs the embeddings. `exits`: the layers that have one. `policy` measures certainty, `rule` decides on it.
    init(
        executor: any SegmentExecutor, tokens: Tokens, exits: [Int], policy: ExitPolicy, rule: any StopRule
    ) throws {
        self.policy = policy
        self.rule = rule
        ahead = exits[...]
        run = try executor.embed(tokens)
    }

    /// The next exit's result; nil after the one that answered.
    mutating func next() throws -> Step? {
        guard let layer = ahead.popFirst() else { return nil }
        let output = try run.layer(layer)
        try output.check(layer: layer)
        let certainty = try policy.certainty(layer: layer, output: output, memory: &memory)
        let exits = rule.stops(after: layer, certainty: certainty) || ahead.isEmpty
        if exits { ahead = [] }
        return Step(layer: layer, logits: output.logits, certainty: certainty, exits: exits)
    }
}
