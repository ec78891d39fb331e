import Dispatch
import Foundation

/// Estimates the time of the next segment, so that the share of missed deadlines stays below `missProbability`.
///
/// The arithmetic equals that of `StepEstimator` in the Python runtime (runtime/deadline.py). The estimate is the time
/// of the slowest layer so far in the same call, times the number of layers of the next segment, times a margin that is
/// controlled by missed deadlines. All calls of a runner share one estimator. Thread-safe.
final class StepEstimator: Sendable {
    /// Default maximum share of calls that miss their deadline although their first exit was in time.
    static let missProbability = 0.01
    /// Initial margin of an estimator.
    static let firstMargin = 2.0
    static let largestMargin = 16.0
    /// A missed deadline raises the margin by a factor of at most e^rate.
    static let rate = 0.25

    private let missProbability: Double
    private let logMargin = Locked(log(StepEstimator.firstMargin))

    init(missProbability: Double = StepEstimator.missProbability) throws {
        guard missProbability > 0, missProbability < 1 else {
            throw EarlyExitError.input("missProbability is \(missProbability): it must be above 0 and below 1")
        }
        self.missProbability = missProbability
    }

    /// Estimated time per layer, divided by that of the slowest layer so far in the call.
    var margin: Double { exp(logMargin.withLock { $0 }) }

    /// Updates the margin after a call.
    func observe(missed: Bool) {
        logMargin.withLock { logMargin in
            let changed = logMargin + StepEstimator.rate * ((missed ? 1 : 0) - missProbability / 2)
            logMargin = min(max(changed, 0), log(StepEstimator.largestMargin))
        }
    }
}

/// Exit policy with a deadline: it also exits if the next exit may be reached too late. The first exit is always
/// computed.
struct Deadline: StopRule {
    private var policy: ExitPolicy
    private let end: Double
    private let estimator: StepEstimator
    private let margin: Double
    private let opening: (Int) -> Double
    private let clock: () -> Double
    private var last: Double
    private var slowest = 0.0
    /// True if the segment that runs now had to be loaded first.
    private var waits: Bool
    private let first: Int
    /// Exit layer -> number of layers since the previous exit. The time of a segment is proportional to it.
    private let gaps: [Int: Int]
    private let following: [Int: Int]

    /// `exits`: layers with an exit. `opening`: seconds until the segment of a layer is loaded; 0 if it is. `end` and
    /// `clock` are in seconds.
    init(
        policy: ExitPolicy, exits: [Int], end: Double, estimator: StepEstimator,
        opening: @escaping (Int) -> Double = { _ in 0 }, clock: @escaping () -> Double
    ) {
        self.policy = policy
        self.end = end
        self.estimator = estimator
        self.opening = opening
        self.clock = clock
        margin = estimator.margin
        first = exits.first ?? 0
        gaps = Dictionary(uniqueKeysWithValues: zip(exits, zip(exits, [0] + exits).map(-)))
        following = Dictionary(uniqueKeysWithValues: zip(exits, exits.dropFirst()))
        waits = opening(first) > 0
        last = clock()
    }

    /// End, in seconds, of a call that started at `start` seconds and has `milliseconds`. Throws unless these are above
    /// 0.
    static func end(of milliseconds: Double, start: Double) throws -> Double {
        guard milliseconds > 0 else {
            throw EarlyExitError.input("deadlineMs is \(milliseconds): it must be above 0")
        }
        return start + milliseconds / 1e3
    }

    mutating func stops(after layer: Int, certainty: Float, logits: [Float]) -> Bool {
        let time = clock()
        record((time - last) / Double(gaps[layer, default: 1]))
        last = time
        if let next = following[layer], !policy.stops(after: layer, certainty: certainty, logits: logits) {
            let opening = opening(next)
            if time + opening + margin * slowest * Double(gaps[next, default: 1]) <= end {
                waits = opening > 0
                return false
            }
        }
        let missed = time > end
        // If the first exit or the loading of a segment was late, no margin could have prevented the miss.
        if !missed || (layer != first && !waits) { estimator.observe(missed: missed) }
        return true
    }

    /// Records the time per layer of the last segment; the first segment includes the embeddings.
    ///
    /// The time of a segment that had to be loaded does not predict other segments. It is used only if there is no
    /// other time yet.
    private mutating func record(_ seconds: Double) {
        if slowest == 0 || !waits { slowest = max(slowest, seconds) }
    }
}

/// Seconds on a monotonic clock.
@Sendable
func now() -> Double {
    Double(DispatchTime.now().uptimeNanoseconds) / 1e9
}
