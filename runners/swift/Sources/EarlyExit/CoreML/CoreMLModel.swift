#if canImport(CoreML)
import CoreML
import Foundation
#if canImport(ObjectiveC)
import ObjectiveC
#endif

/// A loaded function of a package. Thread-safe.
final class CoreMLModel: @unchecked Sendable {
    /// File and function, for error messages.
    let name: String
    private let model: MLModel
    private let units: MLComputeUnits
    private let asynchronous: Bool
    private let lock = NSLock()

    /// True if CoreML has asynchronous predictions, which several tasks may run at once on one model.
    static var systemIsAsynchronous: Bool {
        if #available(iOS 17, macOS 14, tvOS 17, visionOS 1, *) { return true }
        return false
    }

    init(name: String, model: MLModel, units: MLComputeUnits, asynchronous: Bool) {
        self.name = name
        self.model = model
        self.units = units
        self.asynchronous = asynchronous
    }

    func predict(_ input: any MLFeatureProvider) async throws -> any MLFeatureProvider {
        do {
            if asynchronous, #available(iOS 17, macOS 14, tvOS 17, visionOS 1, *) {
                return try await model.prediction(from: input)
            }
            return try predictAlone(input)
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            throw EarlyExitError.failure(
                "CoreML cannot run \(name) on \(units.name): \(error.localizedDescription). Try other compute units",
                underlying: error)
        }
    }

    /// Synchronous prediction: one thread at a time, as Apple requires. CoreML autoreleases the outputs, and a thread
    /// of Swift's pool has no run loop that would free them, so each call has a pool of its own.
    private func predictAlone(_ input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        lock.lock()
        defer { lock.unlock() }
        #if canImport(ObjectiveC)
        return try autoreleasepool { try model.prediction(from: input) }
        #else
        return try model.prediction(from: input)
        #endif
    }
}

extension MLComputeUnits {
    /// Name for messages.
    var name: String {
        switch self {
        case .cpuOnly: return "the CPU"
        case .cpuAndGPU: return "CPU and GPU"
        case .cpuAndNeuralEngine: return "CPU and Neural Engine"
        case .all: return "all compute units"
        @unknown default: return "compute units \(rawValue)"
        }
    }
}
#endif
