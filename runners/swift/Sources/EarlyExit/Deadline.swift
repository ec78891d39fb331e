import Dispatch

/// A policy that also stops when the next exit might come too late. The first exit is reached in any case.
struct Deadline: StopRule {
    /// The next layer is expected to take up to this times the slowest one so far. Layers do the same work on the same
    /// input, so a call's own layers tell better than any stored table what the next will take, here and now. A segment
    /// of several layers takes as many times one.
    static let margin = 1.25

    private var policy: ExitPolicy
    private let end: Double
    private let clock: () -> Double
    private var last: Double
    private var slowest = 0.0
    /// Exit layer -> layers since the exit before, and layers to the next one.
    private let gaps: [Int: Int]
    private let ahead: [Int: Int]

    /// `exits`: the layers that have one. `end` and `clock` are in seconds.
    init(policy: ExitPolicy, exits: [Int], end: Double, clock: @escaping () -> Double) {
        self.policy = policy
        self.end = end
        self.clock = clock
        last = clock()
        let sizes = zip(exits, [0] + exits).map(-)
        gaps = Dictionary(uniqueKeysWithValues: zip(exits, sizes))
        ahead = Dictionary(uniqueKeysWithValues: zip(exits, sizes.dropFirst()))
    }

    /// When a call that started at `start` (seconds) must be done. Throws unless milliseconds is a number above 0.
    static func end(of milliseconds: Double, start: Double) throws -> Double {
        guard milliseconds > 0 else {
            throw EarlyExitError.input("deadlineMs is \(milliseconds): it must be above 0")
        }
        return start + milliseconds / 1e3
    }

    mutating func stops(after layer: Int, certainty: Float) -> Bool {
        let time = clock()
        slowest = max(slowest, (time - last) / Double(gaps[layer, default: 1]))
        last = time
        let next = Deadline.margin * slowest * Double(ahead[layer, default: 0])
        return time + next > end || policy.stops(after: layer, certainty: certainty)
    }
}

/// Seconds on a clock that never jumps.
@Sendable
func now() -> Double {
    Double(DispatchTime.now().uptimeNanoseconds) / 1e9
}
