import Dispatch

/// A policy that also stops when the next layer might end too late. The first layer always runs and can answer.
struct Deadline: StopRule {
    /// The next layer is expected to take up to this times the slowest one so far. Layers do the same work on the same
    /// input, so a call's own layers tell better than any stored table what the next will take, here and now.
    static let margin = 1.25

    private var policy: ExitPolicy
    private let end: Double
    private let clock: () -> Double
    private var last: Double
    private var slowest = 0.0

    /// `start` and `clock` are in seconds. Throws unless milliseconds is a number above 0.
    init(policy: ExitPolicy, milliseconds: Double, start: Double, clock: @escaping () -> Double = now) throws {
        guard milliseconds > 0 else {
            throw EarlyExitError.input("deadlineMs is \(milliseconds): it must be above 0")
        }
        self.policy = policy
        self.clock = clock
        end = start + milliseconds / 1e3
        last = clock()
    }

    mutating func stops(after layer: Int, certainty: Float) -> Bool {
        let time = clock()
        slowest = max(slowest, time - last)
        last = time
        return time + Deadline.margin * slowest > end || policy.stops(after: layer, certainty: certainty)
    }
}

/// Seconds on a clock that never jumps.
func now() -> Double {
    Double(DispatchTime.now().uptimeNanoseconds) / 1e9
}
