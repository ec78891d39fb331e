/// Reason for the exit of an input.
public enum StoppedBy: String, Sendable {
    /// The certainty passed the threshold.
    case certainty
    /// The next exit was not expected before the deadline.
    case deadline
    /// The last layer was reached.
    case lastLayer = "last_layer"
}

/// The model's prediction for one text, with its latency and the reason why it exited.
public struct Prediction: Equatable, Sendable {
    /// The class name; for multilabel the labels, joined by "|"; for tokens the IOB2 tags of the words, separated by blanks;
    /// for heads HEAD=CLASS of each head, joined by "|"; nil for regression.
    public let label: String?
    /// The value of a regression; nil for other kinds.
    public let value: Float?
    /// Class or label -> probability; the model's order is in `manifest.model.labels`. Empty for regression and tokens.
    public let scores: [String: Float]
    /// Multilabel: the labels of the text, in the model's order. nil for other kinds.
    public let labels: [String]?
    /// Tokens: the labelled spans of the text. nil for other kinds.
    public let spans: [Span]?
    /// Heads: name of each requested head -> its class and probabilities. nil for other kinds.
    public let heads: [String: HeadPrediction]?
    /// Number of layers that were run, from 1.
    public let exitLayer: Int
    /// Certainty at the exit layer, as measured by the exit criterion.
    public let certainty: Float
    /// Milliseconds from the call to this prediction, including tokenization; in a batch including the texts before it.
    public let latencyMs: Double
    /// True if the text was truncated to the model's maximum length, or because of the deadline.
    public let truncated: Bool
    /// Reason for the exit; nil in `stream` before the last layer.
    public let stoppedBy: StoppedBy?
    /// True if `latencyMs` exceeded the deadline; nil without a deadline.
    public let late: Bool?
    /// Identity of the bundle (`ModelBundle.digest`).
    public let model: String
}

/// Predictions for one text at every exit, from the first to the last. A layer runs when the iteration reaches it.
public struct PredictionStream: AsyncSequence, Sendable {
    public typealias Element = Prediction

    let start: @Sendable () async throws -> ExitLoop
    let prediction: @Sendable (ExitLoop.Step) throws -> Prediction

    public func makeAsyncIterator() -> Iterator {
        Iterator(stream: self)
    }

    public struct Iterator: AsyncIteratorProtocol {
        let stream: PredictionStream
        private var loop: ExitLoop?

        init(stream: PredictionStream) {
            self.stream = stream
        }

        /// Prediction at the next exit; nil after the last one. Throws CancellationError if the task is cancelled.
        public mutating func next() async throws -> Prediction? {
            if loop == nil { loop = try await stream.start() }
            return try await loop?.next().map(stream.prediction)
        }
    }
}
