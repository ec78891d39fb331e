#if canImport(CoreML)
import CoreML
import Foundation

/// The segments of a bundle on certain compute units. Each is loaded once, when it is first needed.
final class CoreMLSegments: SegmentExecutor {
    let units: MLComputeUnits
    private let source: CoreMLSource
    private let state = Locked(State())

    private struct State: Sendable {
        /// File and function -> its model, which segments may share.
        var models: [String: Task<CoreMLModel, any Error>] = [:]
        var segments: [Int: CoreMLSegment] = [:]
        /// Longest load time of a layer so far, in seconds, without compilation.
        var longestLoad: Double?
    }

    init(_ source: CoreMLSource, on units: MLComputeUnits) {
        self.source = source
        self.units = units
    }

    /// Layers that `load` loads; 0 is the embeddings segment.
    var eagerLayers: [Int] {
        let layers = source.bundle.manifest.segments.map(\.layer)
        return source.options.lazy ? Array(layers.prefix(2)) : layers
    }

    /// Loads the segments and warms them up, as the options require.
    func load(report: (@Sendable (LoadProgress) -> Void)? = nil) async throws {
        let manifest = source.bundle.manifest
        let lengths = source.options.warmUp ? manifest.warmUpLengths : []
        let steps = Double(eagerLayers.count + lengths.count)
        for (place, layer) in eagerLayers.enumerated() {
            _ = try await segment(layer) { report?(LoadProgress(step: $0, fraction: Double(place) / steps)) }
        }
        for (place, length) in lengths.enumerated() {
            report?(LoadProgress(step: .warmingUp, fraction: Double(eagerLayers.count + place) / steps))
            try await run(manifest, exits: eagerLayers.filter { $0 > 0 }, length: length)
        }
        report?(LoadProgress(step: .completed, fraction: 1))
    }

    func embed(_ tokens: Tokens) async throws -> any LayerRunner {
        let manifest = source.bundle.manifest
        let padded = try tokens.padded(
            toOneOf: manifest.lengths, padTokenId: Int32(clamping: manifest.model.padTokenId))
        let inputs = try [
            "input_ids": padded.inputIds, "token_type_ids": padded.tokenTypeIds, "attention_mask": padded.attentionMask,
        ].mapValues { MLFeatureValue(multiArray: try MLMultiArray.row($0)) }
        return try await CoreMLRun(self, tensors: segment(0).run(inputs))
    }

    /// 0 if the segment is loaded, else the longest load time of a layer so far; infinity if no layer was loaded yet.
    func openingSeconds(_ layer: Int) -> Double {
        state.withLock { $0.segments[layer] == nil ? $0.longestLoad ?? .infinity : 0 }
    }

    /// The segment that ends with `layer`, loaded if necessary. `report` is called with the steps of the loading.
    func segment(_ layer: Int, report: @escaping @Sendable (LoadProgress.Step) -> Void = { _ in }) async throws
        -> CoreMLSegment
    {
        if let segment = state.withLock({ $0.segments[layer] }) { return segment }
        guard let info = source.bundle.manifest.segments.first(where: { $0.layer == layer }) else {
            throw EarlyExitError.failure("no segment ends with layer \(layer). Export the bundle again")
        }
        let model = try await model(info, report)
        return try state.withLock { state in
            if let segment = state.segments[layer] { return segment }
            let segment = try CoreMLSegment(info, model: model, bundle: source.bundle)
            state.segments[layer] = segment
            return segment
        }
    }

    /// The model of a segment. All tasks that need it wait for the same load, which the cancellation of one of them
    /// does not stop. After a failure, the next call tries again.
    private func model(_ segment: Segment, _ report: @escaping @Sendable (LoadProgress.Step) -> Void) async throws
        -> CoreMLModel
    {
        let task = state.withLock { state in
            if let task = state.models[segment.name] { return task }
            let task = Task { [source, units] in
                report(.loading(segment.name))
                return try await source.load(segment, on: units) { report(.compiling(segment.name)) }
            }
            state.models[segment.name] = task
            return task
        }
        let begin = now()
        do {
            let model = try await task.value
            let seconds = now() - begin
            if segment.layer > 0 { state.withLock { $0.longestLoad = max($0.longestLoad ?? 0, seconds) } }
            return model
        } catch {
            state.withLock { $0.models[segment.name] = nil }
            throw error
        }
    }
}

/// State of one input between two segments. The outputs of CoreML are passed on unchanged, in any layout.
private final class CoreMLRun: LayerRunner {
    private let segments: CoreMLSegments
    /// Role -> tensor for the next segment: the hidden states, and the outputs of the embeddings for all layers.
    private var tensors: [String: MLFeatureValue]

    init(_ segments: CoreMLSegments, tensors: [String: MLFeatureValue]) {
        self.segments = segments
        self.tensors = tensors
    }

    func layer(_ layer: Int) async throws -> LayerOutput {
        let made = try await segments.segment(layer).run(tensors)
        tensors["hidden"] = made["hidden"]
        guard let logits = made["logits"]?.multiArrayValue else {
            throw EarlyExitError.failure("layer \(layer) gave no logits. Export the bundle again")
        }
        return LayerOutput(logits: logits.floats, lte: made["lte"]?.multiArrayValue?.floats.first)
    }
}
#endif
