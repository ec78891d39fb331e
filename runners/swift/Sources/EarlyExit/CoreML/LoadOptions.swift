#if canImport(CoreML)
import CoreML

/// Options of `EarlyExitRunner.load`.
public struct LoadOptions: Sendable {
    /// Compute units that run the segments.
    public var computeUnits: MLComputeUnits
    /// Loads only the embeddings and the segment of the first exit. A deeper segment is loaded when an input first
    /// reaches it.
    public var lazy: Bool
    /// Input lengths that are loaded and warmed up at once, if the bundle has functions per length; nil: the shortest.
    /// The functions of another length are loaded at the first input of that length.
    public var lengths: [Int]?
    /// Starts on the CPU, where models load fastest. The compute units take over when they are loaded and warmed up.
    public var startOnCPU: Bool
    /// Runs every loaded segment at every length, so that the first prediction is as fast as the others.
    public var warmUp: Bool
    /// Compares the files with their sha256, except compiled models. Packages are compared when they are compiled.
    public var verify: Bool
    /// Maximum share of calls that miss their deadline although their first exit was in time.
    public var missProbability: Double
    /// Changes the configuration of a model before it is loaded, such as `optimizationHints`. `computeUnits` is already
    /// set. `functionName` is set afterwards.
    public var configure: (@Sendable (MLModelConfiguration) -> Void)?

    public init(
        computeUnits: MLComputeUnits = CoreMLExecutor.defaultComputeUnits, lazy: Bool = false, lengths: [Int]? = nil,
        startOnCPU: Bool = false, warmUp: Bool = true, verify: Bool = true, missProbability: Double = 0.01,
        configure: (@Sendable (MLModelConfiguration) -> Void)? = nil
    ) {
        self.computeUnits = computeUnits
        self.lazy = lazy
        self.lengths = lengths
        self.startOnCPU = startOnCPU
        self.warmUp = warmUp
        self.verify = verify
        self.missProbability = missProbability
        self.configure = configure
    }
}

/// Progress of `EarlyExitRunner.load`, reported when a step begins and when all are completed.
public struct LoadProgress: Equatable, Sendable {
    public enum Step: Equatable, Sendable {
        /// Compiling a package, which takes seconds. Only the first launch after an installation or a system update
        /// does it.
        case compiling(String)
        /// Loading a function of a package.
        case loading(String)
        /// Running all loaded segments once.
        case warmingUp
        case completed
    }

    public let step: Step
    /// Share of the steps that are completed, 0 to 1.
    public let fraction: Double
}

/// Device class that decides about the compute units.
enum Platform {
    case simulator, phoneOrTablet, other

    static var current: Platform {
        #if targetEnvironment(simulator)
        return .simulator
        #elseif os(iOS) && !targetEnvironment(macCatalyst)
        return .phoneOrTablet
        #else
        return .other
        #endif
    }

    /// Compute units by default. Those of devices equal the device catalogue of `berxit-export`. The simulator has no
    /// Neural Engine.
    var computeUnits: MLComputeUnits {
        switch self {
        case .simulator: return .cpuOnly
        case .phoneOrTablet: return .cpuAndNeuralEngine
        case .other: return .all
        }
    }
}
#endif
