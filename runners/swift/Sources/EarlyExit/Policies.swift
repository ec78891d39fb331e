import Foundation

/// Exit criterion. The criteria and their arithmetic (float32) equal those of the Python runtime.
public enum Criterion: String, CaseIterable, Sendable {
    /// Highest class probability.
    case confidence
    /// Entropy of the class probabilities in nats; a lower entropy is a higher certainty.
    case entropy
    /// LTE certainty, computed by the segment.
    case lte
    /// Number of consecutive layers that agree with the layer before them.
    case patience
}

/// Exit policy: a criterion with one threshold per layer except the last.
public struct ExitPolicy: Equatable, Sendable {
    public let criterion: Criterion
    /// Thresholds of layers 1 to n - 1. At layer n every input exits.
    public let thresholds: [Double]
    /// Temperatures of layers 1 to n. The logits of a layer are divided by it before certainty and scores are computed.
    public let temperatures: [Double]
    /// Patience on regression: two values that differ by less agree; in units of the labels.
    public let tolerance: Double

    public var layers: Int { temperatures.count }

    /// Throws for a threshold or temperature out of range.
    public init(criterion: Criterion, thresholds: [Double], temperatures: [Double], tolerance: Double = 0.5) throws {
        guard temperatures.count == thresholds.count + 1 else {
            throw EarlyExitError.input(
                "exit policy has \(thresholds.count) thresholds and \(temperatures.count) temperatures:"
                    + " n layers need n - 1 and n")
        }
        guard temperatures.allSatisfy({ $0 > 0 && $0.isFinite }) else {
            throw EarlyExitError.input("temperatures must be finite and above 0")
        }
        for threshold in thresholds { try ExitPolicy.check(threshold, for: criterion) }
        self.criterion = criterion
        self.thresholds = thresholds
        self.temperatures = temperatures
        self.tolerance = tolerance
    }

    /// Policy with the same threshold at every layer.
    public func with(threshold: Double) throws -> ExitPolicy {
        try ExitPolicy(
            criterion: criterion, thresholds: thresholds.map { _ in threshold }, temperatures: temperatures,
            tolerance: tolerance)
    }

    /// Throws if the criterion does not work for such a model.
    func check(regression: Bool, lte: Bool) throws {
        if regression, criterion == .confidence || criterion == .entropy {
            throw EarlyExitError.input(
                "'\(criterion.rawValue)' needs class probabilities: use lte or patience for regression")
        }
        if criterion == .lte, !lte {
            throw EarlyExitError.input("'lte' needs a model trained with --lte: train again, or choose another")
        }
    }

    private static func check(_ threshold: Double, for criterion: Criterion) throws {
        let problem: String
        if !threshold.isFinite || threshold < 0 {
            problem = "it must be a finite number of at least 0"
        } else if criterion == .confidence || criterion == .lte, threshold > 1 {
            problem = "\(criterion.rawValue) is between 0 and 1"
        } else if criterion == .patience, threshold < 1 {
            problem = "patience is a number of layers, at least 1"
        } else {
            return
        }
        throw EarlyExitError.input("threshold \(threshold) is out of range: \(problem)")
    }

    // MARK: Exit decision

    /// State of the patience criterion that is passed from one layer to the next.
    struct Memory {
        /// Predicted class of the last layer; its value for regression.
        let prediction: Float
        /// Number of consecutive layers that agreed with the layer before them.
        let streak: Int
    }

    /// Certainty at `layer`. Logits: one per class, or one value for regression.
    func certainty(layer: Int, output: LayerOutput, memory: inout Memory?) throws -> Float {
        let logits = scaled(output.logits, layer: layer)
        switch criterion {
        case .confidence:
            return 1 / powers(logits).reduce(0, +)
        case .entropy:
            let shifted = logits.map { $0 - (logits.max() ?? 0) }
            let powers = shifted.map { Float(exp($0)) }
            let total = powers.reduce(0, +)
            let terms = zip(powers, shifted).map { $0 == 0 ? 0 : $0 * $1 }  // 0 log 0 = 0, where 0 x -inf is NaN
            return log(total) - terms.reduce(0, +) / total
        case .lte:
            guard let lte = output.lte else {
                throw EarlyExitError.failure("layer \(layer) gave no lte, which the policy needs. Export the bundle again")
            }
            return lte
        case .patience:
            let regression = logits.count == 1
            let prediction = regression ? logits[0] : Float(largest(logits))
            var streak = 0
            if let before = memory {
                let agrees =
                    regression
                    ? abs(prediction - before.prediction) < Float(tolerance) : prediction == before.prediction
                streak = agrees ? before.streak + 1 : 0
            }
            memory = Memory(prediction: prediction, streak: streak)
            return Float(streak)
        }
    }

    /// Class probabilities; the value for regression.
    func scores(layer: Int, logits: [Float]) -> [Float] {
        guard logits.count > 1 else { return logits }
        let powers = powers(scaled(logits, layer: layer))
        let total = powers.reduce(0, +)
        return powers.map { $0 / total }
    }

    private func scaled(_ logits: [Float], layer: Int) -> [Float] {
        let temperature = Float(temperatures[layer - 1])
        return logits.count == 1 || temperature == 1 ? logits : logits.map { $0 / temperature }
    }
}

extension ExitPolicy: StopRule {
    /// True if the certainty passes the threshold: above it, below it for entropy, at or above it for patience. The
    /// threshold is compared as float32, because the certainty is float32.
    public mutating func stops(after layer: Int, certainty: Float) -> Bool {
        guard layer < layers else { return true }
        let threshold = thresholds[layer - 1]
        switch criterion {
        case .confidence, .lte: return certainty > Float(threshold)
        case .entropy: return certainty < Float(threshold)
        case .patience: return Double(certainty) >= threshold
        }
    }
}

/// Index of the largest value; the first of several.
func largest(_ values: [Float]) -> Int {
    values.indices.reduce(0) { values[$1] > values[$0] ? $1 : $0 }
}

/// Exponentials of the logits, which are shifted so that exp cannot overflow.
private func powers(_ logits: [Float]) -> [Float] {
    let top = logits.max() ?? 0
    return logits.map { exp($0 - top) }
}
