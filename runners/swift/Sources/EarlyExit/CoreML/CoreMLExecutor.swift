#if canImport(CoreML)
import CoreML
import Foundation

/// Runs the segments of a bundle with CoreML. With `startOnCPU`, on the CPU until the compute units are ready.
public final class CoreMLExecutor: SegmentExecutor {
    private let source: CoreMLSource
    private let state = Locked(State())

    private struct State: Sendable {
        /// Segments for the next input; nil before the first one and after `unload`.
        var segments: CoreMLSegments?
        /// Loads the segments on the compute units, while the CPU runs the inputs.
        var upgrade: Task<Void, any Error>?
    }

    /// Compute units by default: CPU and Neural Engine on iPhone and iPad, the CPU in the simulator, all others
    /// elsewhere.
    public static var defaultComputeUnits: MLComputeUnits { Platform.current.computeUnits }

    /// Executor of a bundle. A segment is loaded when it is first needed.
    public convenience init(bundle: ModelBundle, options: LoadOptions = LoadOptions()) throws {
        try self.init(CoreMLSource(bundle: bundle, options: options, cache: .ofThisSystem()))
    }

    init(_ source: CoreMLSource) {
        self.source = source
    }

    deinit {
        state.withLock { $0.upgrade?.cancel() }
    }

    /// Compute units of the next input.
    var computeUnits: MLComputeUnits { segments().units }

    /// Loads the segments, as the options require. Deletes stale models from the cache.
    func load(report: (@Sendable (LoadProgress) -> Void)? = nil) async throws {
        try await segments().load(report: report)
        source.cache.removeStale()
    }

    /// Returns when the compute units of the options run the inputs.
    func finishLoading() async throws {
        try await state.withLock { $0.upgrade }?.value
    }

    public func embed(_ tokens: Tokens) async throws -> any LayerRunner {
        try await segments().embed(tokens)
    }

    public func openingSeconds(_ layer: Int, tokens: Int) -> Double {
        segments().openingSeconds(layer, tokens: tokens)
    }

    public func oneGraph() -> (any SegmentExecutor)? {
        segments().oneGraph()
    }

    public func unload() {
        state.withLock { state in
            state.upgrade?.cancel()
            state = State()
        }
    }

    private func segments() -> CoreMLSegments {
        state.withLock { state in
            if let segments = state.segments { return segments }
            let target = CoreMLSegments(source, on: source.options.computeUnits)
            guard source.options.startOnCPU, target.units != .cpuOnly else {
                state.segments = target
                return target
            }
            let first = CoreMLSegments(source, on: .cpuOnly)
            state.segments = first
            state.upgrade = Task(priority: .utility) { [weak self] in
                try await first.load()  // before the others, so that the first prediction does not wait for them
                try await target.load()
                try Task.checkCancellation()
                self?.replace(first, by: target)
            }
            return first
        }
    }

    private func replace(_ first: CoreMLSegments, by target: CoreMLSegments) {
        state.withLock { if $0.segments === first { $0.segments = target } }
    }
}

extension EarlyExitRunner {
    /// Opens a bundle that `berxit-export --target coreml` wrote.
    ///
    /// The first call compiles the models, which takes seconds, unless the bundle contains them compiled. Later calls
    /// load the compiled models from the caches folder. `progress` is called on any thread.
    public static func load(
        _ folder: URL, options: LoadOptions = LoadOptions(), progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: folder, verify: options.verify)
        let executor = try CoreMLExecutor(bundle: bundle, options: options)
        let runner = try EarlyExitRunner(
            bundle: bundle, executor: executor, missProbability: options.missProbability)
        try await executor.load(report: progress)
        return runner
    }

    /// Compute units of the next prediction: with `startOnCPU`, the CPU until the others are ready. nil if the runner
    /// was not created by `load`.
    public var computeUnits: MLComputeUnits? { (executor as? CoreMLExecutor)?.computeUnits }

    /// With `startOnCPU`, returns when the compute units of the options run the predictions. Throws if they cannot; the
    /// predictions then stay on the CPU.
    public func finishLoading() async throws {
        try await (executor as? CoreMLExecutor)?.finishLoading()
    }
}
#endif
