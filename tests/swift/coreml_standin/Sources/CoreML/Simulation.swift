import Foundation
import ObjectiveC

/// Behaviour of the stand-in, and its log. Not part of CoreML.
///
/// The tests of this package run one after another, so that one simulation is enough.
public final class Simulation: @unchecked Sendable {
    public static let shared = Simulation()

    private let lock = NSLock()
    private var lines: [String] = []
    private var loadErrors: [any Error] = []
    private var delays: [MLComputeUnits: Double] = [:]
    private var held: Set<MLComputeUnits> = []
    private var strided = false
    /// Outputs of predictions that are not freed.
    public let liveOutputs = Counter()

    /// Back to normal behaviour and an empty log.
    public func reset() {
        locked {
            lines = []
            loadErrors = []
            delays = [:]
            held = []
            strided = false
        }
    }

    /// The next loads throw these errors.
    public func failLoads(_ errors: [any Error]) {
        locked { loadErrors = errors }
    }

    /// Loads on these compute units take so many seconds, as the Neural Engine's compiler does.
    public func delayLoads(on units: MLComputeUnits, seconds: Double) {
        locked { delays[units] = seconds }
    }

    /// Loads on these compute units wait until the returned function is called.
    public func holdLoads(on units: MLComputeUnits) -> @Sendable () -> Void {
        locked { _ = held.insert(units) }
        return { self.locked { _ = self.held.remove(units) } }
    }

    /// The outputs are float16 and have gaps between their elements, as those of the Neural Engine.
    public func useStridedOutputs() {
        locked { strided = true }
    }

    /// Log since the previous call.
    public func takeLog() -> [String] {
        locked {
            defer { lines = [] }
            return lines
        }
    }

    func log(_ line: String) {
        locked { lines.append(line) }
    }

    func nextLoadError() -> (any Error)? {
        locked { loadErrors.isEmpty ? nil : loadErrors.removeFirst() }
    }

    /// Returns when a load on these compute units may proceed.
    func waitToLoad(on units: MLComputeUnits) async throws {
        let seconds = locked { delays[units] ?? 0 }
        if seconds > 0 { try await Task.sleep(nanoseconds: UInt64(seconds * 1e9)) }
        while locked({ held.contains(units) }) { try await Task.sleep(nanoseconds: 1_000_000) }
    }

    var areOutputsStrided: Bool { locked { strided } }

    private func locked<Result>(_ body: () -> Result) -> Result {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }
}

/// Error of the stand-in, with the domain of CoreML's errors.
public struct StandinError: CustomNSError, Equatable {
    public static let errorDomain = "com.apple.CoreML"
    private let description: String

    public init(_ description: String) {
        self.description = description
    }

    public var errorUserInfo: [String: Any] { [NSLocalizedDescriptionKey: description] }
}
