#if canImport(CoreML)
import CoreML
import Foundation

/// The segments of a bundle on certain compute units. Each is loaded once, when it is first needed.
final class CoreMLSegments: SegmentExecutor {
    let units: MLComputeUnits
    private let source: CoreMLSource
    private let manifest: Manifest
    private let state = Locked(State())

    private struct State: Sendable {
        /// File and function -> its model, which segments may share.
        var models: [String: Task<CoreMLModel, any Error>] = [:]
        var segments: [Place: CoreMLSegment] = [:]
        /// Longest load time of a layer so far, in seconds.
        var longestLoad: Double?
    }

    /// Key of a loaded segment: its layer, and its input length if each length has functions of its own.
    private struct Place: Hashable {
        let layer: Int
        let length: Int?
    }

    init(_ source: CoreMLSource, on units: MLComputeUnits) {
        self.source = source
        self.units = units
        manifest = source.bundle.manifest
    }

    /// True if each input length has functions of its own.
    private var hasLengths: Bool { manifest.segments.first?.functions.isEmpty == false }

    /// Layers that `load` loads; 0 is the embeddings segment.
    private var eagerLayers: [Int] {
        let layers = manifest.segments.map(\.layer)
        return source.options.lazy ? Array(layers.prefix(2)) : layers
    }

    /// Input lengths that `load` loads and warms up.
    private var eagerLengths: [Int] {
        let all = manifest.lengths.isEmpty ? [manifest.model.maxLength] : manifest.lengths
        guard hasLengths else { return all }
        return all.filter { source.options.lengths?.contains($0) ?? ($0 == all.min()) }
    }

    /// Loads the segments and warms them up, as the options require. Each length runs twice, because CoreML plans the
    /// execution at the first run.
    func load(report: (@Sendable (LoadProgress) -> Void)? = nil) async throws {
        let segments = (hasLengths ? eagerLengths : Array(eagerLengths.prefix(1))).flatMap { length in
            eagerLayers.map { (layer: $0, length: length) }
        }
        let lengths = source.options.warmUp ? eagerLengths + eagerLengths : []
        let steps = Double(segments.count + lengths.count)
        for (done, place) in segments.enumerated() {
            _ = try await segment(place.layer, length: place.length) {
                report?(LoadProgress(step: $0, fraction: Double(done) / steps))
            }
        }
        let exits = eagerLayers.filter { $0 > 0 }
        for (done, length) in lengths.enumerated() {
            report?(LoadProgress(step: .warmingUp, fraction: Double(segments.count + done) / steps))
            try await run(exits: exits, length: length, padTokenId: manifest.model.padTokenId)
        }
        report?(LoadProgress(step: .completed, fraction: 1))
    }

    func embed(_ tokens: Tokens) async throws -> any LayerRunner {
        let padded = try tokens.padded(
            toOneOf: manifest.lengths, padTokenId: Int32(clamping: manifest.model.padTokenId))
        let inputs = try padded.features()
        let hidden = try await segment(0, length: padded.count).run(inputs)
        return CoreMLRun(self, tensors: hidden, length: padded.count)
    }

    /// 0 if the segment is loaded, else the longest load time of a layer so far; infinity if no layer was loaded yet.
    func openingSeconds(_ layer: Int, tokens: Int) -> Double {
        let length = (try? Tokens.length(for: tokens, of: manifest.lengths)) ?? tokens
        return state.withLock { $0.segments[place(layer, length)] == nil ? $0.longestLoad ?? .infinity : 0 }
    }

    func oneGraph() -> (any SegmentExecutor)? {
        manifest.full == nil ? nil : CoreMLOneGraph(self, lengths: manifest.lengths, padTokenId: manifest.model.padTokenId)
    }

    /// Full depth as one graph, for inputs of `length` tokens.
    fileprivate func fullDepth(length: Int) async throws -> CoreMLSegment {
        guard let full = manifest.full else { throw EarlyExitError.failure("the bundle has no graph without exits") }
        return try await CoreMLSegment(full, model: model(full, length: length) { _ in }, bundle: source.bundle)
    }

    /// The segment that ends with `layer`, for inputs of `length` tokens, loaded if necessary. `report` is called with
    /// the steps of the loading.
    func segment(
        _ layer: Int, length: Int, report: @escaping @Sendable (LoadProgress.Step) -> Void = { _ in }
    ) async throws -> CoreMLSegment {
        let place = place(layer, length)
        if let segment = state.withLock({ $0.segments[place] }) { return segment }
        guard let info = manifest.segments.first(where: { $0.layer == layer }) else {
            throw EarlyExitError.failure("no segment ends with layer \(layer). Export the bundle again")
        }
        let model = try await model(info, length: length, report)
        return try state.withLock { state in
            if let segment = state.segments[place] { return segment }
            let segment = try CoreMLSegment(info, model: model, bundle: source.bundle)
            state.segments[place] = segment
            return segment
        }
    }

    private func place(_ layer: Int, _ length: Int) -> Place {
        Place(layer: layer, length: hasLengths ? length : nil)
    }

    /// The model of a segment. All tasks that need it wait for the same load, which the cancellation of one of them
    /// does not stop. After a failure, the next call tries again.
    private func model(
        _ segment: Segment, length: Int, _ report: @escaping @Sendable (LoadProgress.Step) -> Void
    ) async throws -> CoreMLModel {
        let name = source.name(segment, length: length)
        let task = state.withLock { state in
            if let task = state.models[name] { return task }
            let task = Task { [source, units] in
                report(.loading(name))
                return try await source.load(segment, length: length, on: units) { report(.compiling(name)) }
            }
            state.models[name] = task
            return task
        }
        let begin = now()
        do {
            let model = try await task.value
            let seconds = now() - begin
            if segment.layer > 0 { state.withLock { $0.longestLoad = max($0.longestLoad ?? 0, seconds) } }
            return model
        } catch {
            state.withLock { $0.models[name] = nil }
            throw error
        }
    }
}

/// State of one input between two segments. The outputs of CoreML are passed on unchanged, in any layout.
private final class CoreMLRun: LayerRunner {
    private let segments: CoreMLSegments
    /// Role -> tensor for the next segment: the hidden states, and the outputs of the embeddings for all layers.
    private var tensors: [String: MLFeatureValue]
    private let length: Int

    init(_ segments: CoreMLSegments, tensors: [String: MLFeatureValue], length: Int) {
        self.segments = segments
        self.tensors = tensors
        self.length = length
    }

    func layer(_ layer: Int) async throws -> LayerOutput {
        let made = try await segments.segment(layer, length: length).run(tensors)
        tensors["hidden"] = made["hidden"]
        return try LayerOutput(made, layer: layer)
    }
}

/// The graph at full depth without exits, as an executor that has only the last layer.
private struct CoreMLOneGraph: SegmentExecutor {
    private let segments: CoreMLSegments
    private let lengths: [Int]
    private let padTokenId: Int

    init(_ segments: CoreMLSegments, lengths: [Int], padTokenId: Int) {
        self.segments = segments
        self.lengths = lengths
        self.padTokenId = padTokenId
    }

    func embed(_ tokens: Tokens) async throws -> any LayerRunner {
        let padded = try tokens.padded(toOneOf: lengths, padTokenId: Int32(clamping: padTokenId))
        return Run(segment: try await segments.fullDepth(length: padded.count), inputs: try padded.features())
    }

    private final class Run: LayerRunner {
        private let segment: CoreMLSegment
        private let inputs: [String: MLFeatureValue]

        init(segment: CoreMLSegment, inputs: [String: MLFeatureValue]) {
            self.segment = segment
            self.inputs = inputs
        }

        func layer(_ layer: Int) async throws -> LayerOutput {
            try LayerOutput(await segment.run(inputs), layer: layer)
        }
    }
}

extension LayerOutput {
    /// `tensors`: outputs of an exit by role. The LTE certainty is an output, or the sigmoid of one.
    fileprivate init(_ tensors: [String: MLFeatureValue], layer: Int) throws {
        guard let logits = tensors["logits"]?.multiArrayValue else {
            throw EarlyExitError.failure("layer \(layer) gave no logits. Export the bundle again")
        }
        let logit = tensors["lte_logit"]?.multiArrayValue?.floats.first
        let lte = tensors["lte"]?.multiArrayValue?.floats.first
        self.init(logits: logits.floats, lte: lte ?? logit.map { 1 / (1 + exp(-$0)) })
    }
}

extension Tokens {
    /// Input tensors of the embeddings segment by role.
    fileprivate func features() throws -> [String: MLFeatureValue] {
        try ["input_ids": inputIds, "token_type_ids": tokenTypeIds, "attention_mask": attentionMask].mapValues {
            MLFeatureValue(multiArray: try MLMultiArray.row($0))
        }
    }
}
#endif
