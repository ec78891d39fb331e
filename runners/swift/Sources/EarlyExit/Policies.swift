import Foundation

/// Exit criterion. The criteria and their arithmetic equal those of the Python runtime; docs/bundle.md defines them.
public enum Criterion: String, CaseIterable, Sendable {
    /// Highest class probability.
    case confidence
    /// Entropy of the class probabilities in nats; a lower entropy is a higher certainty.
    case entropy
    /// LTE certainty, computed by the segment.
    case lte
    /// Number of consecutive layers that agree with the layer before them.
    case patience
    /// Confidence, summed over consecutive exits that predict the same class.
    case agreement
    /// Expected agreement with full depth, by a logistic model per exit.
    case learned
    /// Number of exits so far: every input exits at the same layer.
    case fixed

    /// True if the certainty is a number of exits, which exits at the threshold, too.
    var counts: Bool { self == .patience || self == .fixed }

    /// True if the criterion works for regression models.
    var fitsRegression: Bool { self != .confidence && self != .entropy && self != .agreement }

    /// Certainty that passes no threshold.
    var uncertain: Float { self == .entropy ? .greatestFiniteMagnitude : 0 }

    /// The less certain of two certainties.
    func lessCertain(_ one: Float, _ other: Float) -> Float { self == .entropy ? max(one, other) : min(one, other) }
}

/// Threshold of one layer.
public enum Threshold: Equatable, Sendable {
    case number(Double)
    /// One number per predicted class.
    case perClass([Double])

    var numbers: [Double] {
        switch self {
        case .number(let number): return [number]
        case .perClass(let numbers): return numbers
        }
    }
}

/// Exit policy: a criterion with one threshold per layer except the last.
public struct ExitPolicy: Equatable, Sendable {
    public let criterion: Criterion
    /// Thresholds of layers 1 to n - 1. At layer n every input exits.
    public let thresholds: [Threshold]
    /// Temperatures of layers 1 to n. The logits of a layer are divided by it before certainty and scores are computed.
    public let temperatures: [Double]
    /// Regression: for patience, two values that differ by less agree; for learned, the unit of the values.
    public let tolerance: Double
    /// Number of consecutive exits that must pass the threshold.
    public let patience: Int
    /// Layers whose exit is switched off.
    public let off: Set<Int>
    /// For learned: weights of layers 1 to n - 1, the intercept first.
    public let weights: [[Double]]

    public var layers: Int { temperatures.count }

    /// The smallest schema version of a bundle with this policy.
    var schemaVersion: Int {
        let isNewer = criterion == .agreement || criterion == .learned || criterion == .fixed
        let isPerClass = thresholds.contains { $0.numbers.count > 1 }
        return isNewer || isPerClass || patience > 1 || !off.isEmpty ? 2 : 1
    }

    /// Throws for a number out of range, and for settings that contradict each other.
    public init(
        criterion: Criterion, thresholds: [Threshold], temperatures: [Double], tolerance: Double = 0.5,
        patience: Int = 1, off: Set<Int> = [], weights: [[Double]] = []
    ) throws {
        guard temperatures.count == thresholds.count + 1 else {
            throw EarlyExitError.input(
                "exit policy has \(thresholds.count) thresholds and \(temperatures.count) temperatures:"
                    + " n layers need n - 1 and n")
        }
        guard temperatures.allSatisfy({ $0 > 0 && $0.isFinite }) else {
            throw EarlyExitError.input("temperatures must be finite and above 0")
        }
        for number in thresholds.flatMap(\.numbers) { try ExitPolicy.check(number, for: criterion) }
        guard (1...temperatures.count).contains(patience), patience == 1 || !criterion.counts else {
            throw EarlyExitError.input(
                "patience is \(patience): it must be from 1 to \(temperatures.count), and 1 with the criterion"
                    + " \(criterion.rawValue)")
        }
        guard off.allSatisfy({ (1..<temperatures.count).contains($0) }) else {
            throw EarlyExitError.input("exits \(off.sorted()) cannot be switched off: give layers before the last one")
        }
        guard weights.count == (criterion == .learned ? thresholds.count : 0),
            weights.allSatisfy({ $0.allSatisfy(\.isFinite) })
        else {
            throw EarlyExitError.input(
                "'\(criterion.rawValue)' has \(weights.count) rows of weights for \(temperatures.count) layers")
        }
        self.criterion = criterion
        self.thresholds = thresholds
        self.temperatures = temperatures
        self.tolerance = tolerance
        self.patience = patience
        self.off = off
        self.weights = weights
    }

    /// Policy with one number per threshold.
    public init(criterion: Criterion, thresholds: [Double], temperatures: [Double], tolerance: Double = 0.5) throws {
        try self.init(
            criterion: criterion, thresholds: thresholds.map(Threshold.number), temperatures: temperatures,
            tolerance: tolerance)
    }

    /// Policy with the same threshold at every layer, for every class.
    public func with(threshold: Double) throws -> ExitPolicy {
        try ExitPolicy(
            criterion: criterion, thresholds: thresholds.map { _ in .number(threshold) }, temperatures: temperatures,
            tolerance: tolerance, patience: patience, off: off, weights: weights)
    }

    /// Throws if the policy does not work for a model. `outputs`: classes of a decision, 1 for regression. `several`: the
    /// model's texts have several decisions.
    func check(outputs: Int, lte: Bool, several: Bool = false) throws {
        let regression = outputs == 1
        if several, criterion == .learned {
            throw EarlyExitError.input("'learned' needs one class per text: use confidence, entropy, patience or lte")
        }
        for case .perClass in thresholds where several {
            throw EarlyExitError.input("thresholds per class need one class per text: use one threshold for all labels")
        }
        if regression, !criterion.fitsRegression {
            throw EarlyExitError.input(
                "'\(criterion.rawValue)' needs class probabilities: use lte, patience or learned for regression")
        }
        if criterion == .lte, !lte {
            throw EarlyExitError.input("'lte' needs a model trained with --lte: train again, or choose another")
        }
        for case .perClass(let numbers) in thresholds where regression || numbers.count != outputs {
            throw EarlyExitError.input("a threshold has \(numbers.count) numbers: it needs one, or one per class")
        }
        let features = regression ? LearnedModel.regressionFeatures : LearnedModel.classificationFeatures
        for row in weights where row.count != features + 1 {
            throw EarlyExitError.input(
                "'learned' has \(row.count) weights at a layer: this model needs \(features + 1)")
        }
        if regression, criterion == .learned, !(tolerance > 0) {
            throw EarlyExitError.input("'learned' needs a tolerance above 0 for regression")
        }
    }

    private static func check(_ threshold: Double, for criterion: Criterion) throws {
        let problem: String
        if !threshold.isFinite || threshold < 0 {
            problem = "it must be a finite number of at least 0"
        } else if [.confidence, .lte, .learned].contains(criterion), threshold > 1 {
            problem = "\(criterion.rawValue) is between 0 and 1"
        } else if criterion.counts, threshold < 1 {
            problem = "\(criterion.rawValue) is a number of layers, at least 1"
        } else {
            return
        }
        throw EarlyExitError.input("threshold \(threshold) is out of range: \(problem)")
    }

    // MARK: Exit decision

    /// State of a policy that is passed from one exit to the next.
    struct Memory {
        /// One per decision.
        var decisions: [Decision] = []
        /// Certainties of the last exits, at most patience - 1, the latest last.
        var window: [Float] = []
    }

    /// State of a criterion for one decision.
    struct Decision {
        /// Predicted class of the last exit; its value for regression.
        var prediction: Float = 0
        /// Number of consecutive exits that agreed with the exit before them.
        var streak = 0
        /// Certainty of the last exit.
        var certainty: Float = 0
        /// Outputs of the last exit and of the exit before it: class probabilities, or one value.
        var outputs: [[Double]] = []
    }

    /// Certainty at `layer`, that of the least certain decision. `decisions`: logits of each, one per class, or one value
    /// for regression.
    func certainty(layer: Int, decisions: [[Float]], lte: Float?, memory: inout Memory?) throws -> Float {
        var after = memory ?? Memory(decisions: decisions.map { _ in Decision() })
        var own: Float?
        for (place, logits) in decisions.enumerated() {
            let found = try certainty(
                layer: layer, logits: scaled(logits, layer: layer), lte: lte, first: memory == nil,
                &after.decisions[place])
            own = own.map { criterion.lessCertain($0, found) } ?? found
        }
        guard let own else { preconditionFailure("a text has at least one decision") }
        let recent = after.window + [own]
        let found = recent.count < patience ? criterion.uncertain : recent.reduce(own, criterion.lessCertain)
        after.window = recent.suffix(patience - 1)
        if !off.contains(layer) { memory = after }
        return found
    }

    /// Certainty of the criterion. `memory`: the state of the previous exits, which is updated.
    private func certainty(
        layer: Int, logits: [Float], lte: Float?, first: Bool, _ memory: inout Decision
    ) throws -> Float {
        let regression = logits.count == 1
        let prediction = regression ? logits[0] : Float(largest(logits))
        let agrees =
            !first
            && (regression
                ? abs(prediction - memory.prediction) < Float(tolerance) : prediction == memory.prediction)
        memory.streak = agrees ? memory.streak + 1 : 0
        memory.prediction = prediction
        switch criterion {
        case .confidence:
            memory.certainty = 1 / powers(logits).reduce(0, +)
        case .entropy:
            let top = logits.max() ?? 0
            let shifted = logits.map { $0 - top }
            let powers = shifted.map { Float(exp($0)) }
            let total = powers.reduce(0, +)
            let terms = zip(powers, shifted).map { $0 == 0 ? 0 : $0 * $1 }  // 0 log 0 = 0, where 0 x -inf is NaN
            memory.certainty = log(total) - terms.reduce(0, +) / total
        case .lte:
            guard let lte else {
                throw EarlyExitError.failure("layer \(layer) gave no lte, which the policy needs. Export the bundle again")
            }
            memory.certainty = lte
        case .patience:
            memory.certainty = Float(memory.streak)
        case .fixed:
            memory.certainty = first ? 1 : memory.certainty + 1
        case .agreement:
            memory.certainty = 1 / powers(logits).reduce(0, +) + (agrees ? memory.certainty : 0)
        case .learned:
            let model = LearnedModel(tolerance: tolerance)
            let features =
                regression
                ? model.features(value: Double(logits[0]), lte: lte, &memory.outputs)
                : model.features(logits: logits, streak: memory.streak, lte: lte, &memory.outputs)
            memory.certainty = layer == layers ? 1 : LearnedModel.certainty(weights[layer - 1], features)
        }
        return memory.certainty
    }

    /// Logits of a decision, divided by the temperature; the value for regression.
    func scaled(_ logits: [Float], layer: Int) -> [Float] {
        let temperature = Float(temperatures[layer - 1])
        return logits.count == 1 || temperature == 1 ? logits : logits.map { $0 / temperature }
    }
}

extension ExitPolicy: StopRule {
    /// True if the certainty passes the threshold: above it, below it for entropy, at or above it for patience. The
    /// threshold is compared as float32, because the certainty is float32.
    public mutating func stops(after layer: Int, certainty: Float, logits: [Float]) -> Bool {
        guard layer < layers else { return true }
        guard !off.contains(layer) else { return false }
        let threshold: Double
        switch thresholds[layer - 1] {
        case .number(let number): threshold = number
        case .perClass(let numbers): threshold = numbers[largest(logits)]
        }
        switch criterion {
        case .confidence, .lte, .agreement, .learned: return certainty > Float(threshold)
        case .entropy: return certainty < Float(threshold)
        case .patience, .fixed: return Double(certainty) >= threshold
        }
    }
}

/// Logistic model of the criterion `learned`; docs/bundle.md defines its features. All numbers are double precision.
struct LearnedModel {
    static let classificationFeatures = 6
    static let regressionFeatures = 5

    /// Range of the labels of a regression model.
    let tolerance: Double

    /// Features of a classifier's exit. `before`: class probabilities of the two exits before, the latest first; this
    /// exit's are added.
    func features(logits: [Float], streak: Int, lte: Float?, _ before: inout [[Double]]) -> [Double] {
        let predicted = largest(logits)
        let powers = logits.map { exp(Double($0) - Double(logits[predicted])) }
        let rest = powers.indices.reduce(0) { $1 == predicted ? $0 : $0 + powers[$1] }
        let earlier = before.map { $0[predicted] } + [0, 0]
        before = [powers.map { $0 / (1 + rest) }] + before.prefix(1)
        return [
            1 / (1 + rest), -log(max(rest, 1e-9)), Double(min(streak, 3)), earlier[0], earlier[1], lte.map(Double.init) ?? 0,
        ]
    }

    /// Features of a regression model's exit. `before`: values of the two exits before, the latest first; this exit's
    /// is added.
    func features(value: Double, lte: Float?, _ before: inout [[Double]]) -> [Double] {
        let differences = before.map { log(abs(value - $0[0]) / tolerance + 0.01) } + [0, 0]
        before = [[value]] + before.prefix(1)
        let size = value / tolerance
        let limited = lte.map { min(max(Double($0), 1e-6), 1 - 1e-6) }
        return [differences[0], differences[1], size, size * size, limited.map { log($0 / (1 - $0)) } ?? 0]
    }

    /// Logistic function of the weighted features. `weights`: the intercept first.
    static func certainty(_ weights: [Double], _ features: [Double]) -> Float {
        let score = zip(weights.dropFirst(), features).reduce(weights[0]) { $0 + $1.0 * $1.1 }
        return Float(1 / (1 + exp(-min(max(score, -30), 30))))
    }
}

/// Index of the largest value; the first of several.
func largest(_ values: [Float]) -> Int {
    values.indices.reduce(0) { values[$1] > values[$0] ? $1 : $0 }
}

/// Class probabilities.
func softmax(_ logits: [Float]) -> [Float] {
    let powers = powers(logits)
    let total = powers.reduce(0, +)
    return powers.map { $0 / total }
}

/// Exponentials of the logits, which are shifted so that exp cannot overflow.
private func powers(_ logits: [Float]) -> [Float] {
    let top = logits.max() ?? 0
    return logits.map { exp($0 - top) }
}
