/// Content of manifest.json, as specified in docs/bundle.md.
public struct Manifest: Sendable {
    /// Newest schema version that this package supports.
    public static let schemaVersion = 3

    public let target: String
    public let precision: String
    public let model: ModelInfo
    public let tokenizer: DataFile
    public let golden: DataFile
    /// Segments in the order of the exit loop: the embeddings, then one segment up to each layer with an exit.
    public let segments: [Segment]
    /// Full depth as one graph (without exits); nil if the bundle does not contain it.
    public let full: Segment?
    public let policy: ExitPolicy
    /// True if the thresholds were calibrated on data; otherwise every input exits at the last layer.
    public let isCalibrated: Bool
    public let parity: Parity
    /// Input lengths that the segments accept; inputs are padded to the next length. Empty: any length up to the
    /// maximum.
    public let lengths: [Int]
    /// Largest number of rows of a call; nil: any. This package runs one input at a time.
    let maxBatch: Int?

    /// Layers with an exit, in ascending order.
    public var exits: [Int] { segments.dropFirst().map(\.layer) }

    /// `place`: name of the file, for error messages.
    init(_ json: JSON, at place: String) throws {
        guard let version = json["schema_version"].int else {
            throw EarlyExitError.failure("\(place): no schema_version. This is not a bundle of berxit-export")
        }
        guard version <= Manifest.schemaVersion else {
            throw EarlyExitError.failure(
                "\(place): schema version \(version) is newer than \(Manifest.schemaVersion), the newest that this"
                    + " package reads: upgrade it, or export again with an older berxit")
        }
        let fields = try Fields(
            json, at: place,
            needed: [
                "schema_version", "target", "precision", "model", "tokenizer", "segments", "policy", "calibration",
                "parity", "golden", "made_with",
            ],
            optional: ["lengths", "max_batch", "threads", "scores", "full"])
        target = try fields.get("target", \.string)
        precision = try fields.get("precision", \.string)
        model = try fields.one("model", ModelInfo.init)
        tokenizer = try fields.one("tokenizer", DataFile.init)
        golden = try fields.one("golden", DataFile.init)
        segments = try fields.items("segments", Segment.init)
        full = fields.has("full") ? try fields.one("full", Segment.init) : nil
        policy = try fields.one("policy", ExitPolicy.init)
        isCalibrated = try fields.find("calibration", \.object) != nil
        parity = try fields.one("parity", Parity.init)
        lengths = fields.has("lengths") ? try fields.list("lengths", \.int) : []
        guard lengths.first ?? 1 >= 1, zip(lengths, lengths.dropFirst()).allSatisfy(<) else {
            throw EarlyExitError.failure(
                "\(place): lengths is \(lengths): it must be in ascending order, from at least 1. Export the bundle again")
        }
        maxBatch = fields.has("max_batch") ? try fields.whole("max_batch", from: 1) : nil
        if fields.has("threads") { _ = try fields.whole("threads", from: 1) }  // ignored: CoreML chooses its threads
        _ = try fields.find("scores", \.object)
        _ = try fields.get("made_with", \.object)

        do {
            try policy.check(outputs: model.classes, lte: model.lte, several: model.kind.hasSeveralDecisions)
        } catch let error as EarlyExitError {
            throw EarlyExitError.failure("\(place): policy: \(error.message). Export the bundle again")
        }
        for (number, segment) in functions.enumerated()
        where segment.functions.count != (segments.first?.functions.isEmpty == true ? 0 : lengths.count) {
            throw EarlyExitError.failure(
                "\(place): segment \(number) has \(segment.functions.count) functions for \(lengths.count) lengths."
                    + " Export the bundle again")
        }
        let needed = max(policy.schemaVersion, model.kind.schemaVersion)
        guard version >= needed else {
            throw EarlyExitError.failure(
                "\(place): schema_version is \(version), but the kind or the policy needs \(needed)."
                    + " Export the bundle again")
        }
        let layers = segments.map(\.layer)
        guard policy.layers == model.layers, layers.count > 1, layers.first == 0, layers.last == model.layers,
            zip(layers, layers.dropFirst()).allSatisfy(<)
        else {
            throw EarlyExitError.failure(
                "\(place): \(layers.count) segments \(layers) and a policy for \(policy.layers) layers do not match a"
                    + " model of \(model.layers) layers. Export the bundle again")
        }
        guard parity.differences == exits.count else {
            throw EarlyExitError.failure(
                "\(place): parity.max_diff has \(parity.differences) entries for \(exits.count) exits."
                    + " Export the bundle again")
        }
        if target == "coreml" { try TensorCheck(self, at: place).run() }  // the executor rejects other targets
    }

    /// The segments, and full depth as one graph.
    var functions: [Segment] { segments + [full].compactMap { $0 } }

    /// File -> sha256 of all files of the bundle except the manifest.
    var files: [String: String] {
        var found = [tokenizer.file: tokenizer.sha256, golden.file: golden.sha256]
        for segment in functions {
            found[segment.file] = segment.sha256
            if let compiled = segment.compiled { found[compiled.file] = compiled.sha256 }
            for constant in segment.constants.values { found[constant.file] = constant.sha256 }
        }
        return found
    }
}

/// Metadata of the model, including the meaning of its outputs.
public struct ModelInfo: Sendable {
    public let family: String
    public let task: String
    public let kind: TaskKind
    public var isRegression: Bool { kind == .regression }
    /// Class names, labels or IOB2 tags in the order of the logits; empty for regression.
    public let labels: [String]
    /// The named heads of a heads model.
    let heads: [NamedHead]
    let hiddenSize: Int
    /// True if the model expects pairs of texts, false for single texts.
    public let takesPairs: Bool
    public let layers: Int
    /// Maximum number of tokens of an input, including special tokens; longer inputs are truncated.
    public let maxLength: Int
    public let padTokenId: Int
    /// True if the segments compute the LTE certainty.
    public let lte: Bool

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(
            json, at: place,
            needed: [
                "family", "task", "kind", "labels", "metric", "text_columns", "label_column", "layers", "hidden_size",
                "max_length", "pad_token_id", "lte",
            ], optional: ["positive"])
        family = try fields.get("family", \.string)
        task = try fields.get("task", \.string)
        let name = try fields.get("kind", \.string)
        guard let kind = TaskKind(rawValue: name) else {
            let known = TaskKind.allCases.map(\.rawValue).joined(separator: ", ")
            throw EarlyExitError.failure("\(place): model.kind is '\(name)', and this runner supports \(known)")
        }
        self.kind = kind
        labels = try fields.list("labels", \.string)
        let column = try fields.get("label_column", \.string)
        try kind.check(labels, at: place)
        heads = kind == .heads ? try NamedHead.read(labels, column: column, at: place) : []
        let columns = try fields.list("text_columns", \.string).count
        guard columns == 1 || columns == 2 else {
            throw EarlyExitError.failure(
                "\(place): text_columns has \(columns) entries: a model reads 1 text or a pair of 2."
                    + " Export the bundle again")
        }
        takesPairs = columns == 2
        layers = try fields.whole("layers", from: 1)
        hiddenSize = try fields.whole("hidden_size", from: 1)
        maxLength = try fields.whole("max_length", from: 1)
        padTokenId = try fields.whole("pad_token_id", from: 0)
        lte = try fields.get("lte", \.bool)
        _ = try fields.get("metric", \.string)
        _ = try fields.find("positive", \.string)
    }
}

/// File of the bundle, relative to its folder.
public struct DataFile: Sendable {
    public let file: String
    public let sha256: String

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(json, at: place, needed: ["file", "sha256"])
        file = try fields.get("file", \.string)
        sha256 = try fields.get("sha256", \.string)
    }
}

/// Segment of the model: the embeddings (layer 0), or the encoder layers up to one with an exit.
public struct Segment: Sendable {
    /// Last layer of the segment, which has the exit. The segment starts after that of the previous exit.
    public let layer: Int
    public let file: String
    public let sha256: String
    /// Function of the file, if the file contains several.
    public let function: String?
    /// Functions of the file for the manifest's `lengths`, in their order, if each length has its own.
    public let functions: [String]
    /// The file in compiled form (.mlmodelc), which is loaded instead. `file` may then be missing.
    public let compiled: DataFile?
    public let inputs: [TensorInfo]
    public let outputs: [TensorInfo]
    /// Input name -> constant input, for tensors that differ between layers that share one file.
    public let constants: [String: TensorFile]

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(
            json, at: place, needed: ["layer", "file", "sha256", "inputs", "outputs"],
            optional: ["constants", "function", "functions", "compiled", "repeat"])
        let times = try fields.find("repeat", \.int) ?? 1
        guard times == 1 else {
            throw EarlyExitError.failure(
                "\(place): repeat is \(times), but must be 1 for CoreML. Export again with --target coreml")
        }
        layer = try fields.get("layer", \.int)
        file = try fields.get("file", \.string)
        sha256 = try fields.get("sha256", \.string)
        function = try fields.find("function", \.string)
        functions = fields.has("functions") ? try fields.list("functions", \.string) : []
        compiled = fields.has("compiled") ? try fields.one("compiled", DataFile.init) : nil
        inputs = try fields.items("inputs", TensorInfo.init)
        outputs = try fields.items("outputs", TensorInfo.init)
        constants = fields.has("constants") ? try fields.dictionary("constants", TensorFile.init) : [:]
    }
}

extension Segment {
    /// Function for inputs of `length` tokens, one of the manifest's `lengths`; nil if the file has one function.
    func function(for length: Int, of lengths: [Int]) -> String? {
        lengths.firstIndex(of: length).flatMap { functions.indices.contains($0) ? functions[$0] : nil } ?? function
    }
}

/// Input or output of a segment.
public struct TensorInfo: Equatable, Sendable {
    public let name: String
    /// Role of the tensor; for the list of roles, see docs/bundle.md.
    public let role: String
    public let dtype: String
    /// Its sizes; a dynamic size has a name.
    let shape: [String]

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(json, at: place, needed: ["name", "role", "dtype", "shape"])
        name = try fields.get("name", \.string)
        role = try fields.get("role", \.string)
        dtype = try fields.get("dtype", \.string)
        shape = try fields.items("shape") { size, place in
            guard let text = size.string ?? size.int.map({ String($0) }) else { throw Fields.misfit(at: place) }
            return text
        }
    }
}

/// Tensor in a separate file: raw, little-endian, row-major.
public struct TensorFile: Sendable {
    public let file: String
    public let sha256: String
    public let dtype: String
    public let shape: [Int]

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(json, at: place, needed: ["file", "sha256", "dtype", "shape"])
        file = try fields.get("file", \.string)
        sha256 = try fields.get("sha256", \.string)
        dtype = try fields.get("dtype", \.string)
        shape = try fields.list("shape", \.int)
    }
}

/// Differences between the exported segments and the checkpoint, measured at export.
public struct Parity: Sendable {
    public let reference: String
    /// Largest allowed difference: of the logits divided by `scale`, and of the LTE certainty.
    public let atol: Double
    /// Divisor of the differences of logits.
    public let scale: Double
    /// Number of exits that were compared.
    let differences: Int

    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(json, at: place, needed: ["reference", "atol", "max_diff"], optional: ["scale"])
        reference = try fields.get("reference", \.string)
        atol = try fields.get("atol", \.double)
        let found = try fields.list("max_diff", \.double)
        differences = found.count
        for (name, numbers) in [("atol", [atol]), ("max_diff", found)] {
            guard numbers.allSatisfy({ $0 >= 0 && $0 < .infinity }) else {
                throw EarlyExitError.failure(
                    "\(place): \(name) is \(numbers): it must be finite and at least 0. Export the bundle again")
            }
        }
        scale = try fields.find("scale", \.double) ?? 1
        guard scale > 0, scale < .infinity else {
            throw EarlyExitError.failure("\(place): scale is \(scale): it must be above 0. Export the bundle again")
        }
    }
}

extension ExitPolicy {
    init(_ json: JSON, at place: String) throws {
        let fields = try Fields(
            json, at: place, needed: ["criterion", "thresholds", "temperatures"],
            optional: ["tolerance", "patience", "off", "weights"])
        let name = try fields.get("criterion", \.string)
        guard let criterion = Criterion(rawValue: name) else {
            let known = Criterion.allCases.map(\.rawValue).joined(separator: ", ")
            throw EarlyExitError.failure("\(place): unknown exit criterion '\(name)': this package knows \(known)")
        }
        do {
            try self.init(
                criterion: criterion,
                thresholds: fields.items("thresholds", Threshold.init),
                temperatures: fields.list("temperatures", \.double),
                tolerance: fields.find("tolerance", \.double) ?? 0.5,
                patience: fields.find("patience", \.int) ?? 1,
                off: fields.has("off") ? Set(fields.list("off", \.int)) : [],
                weights: fields.has("weights") ? fields.items("weights", Fields.numbers) : [])
        } catch let error as EarlyExitError where error.kind == .input {
            throw EarlyExitError.failure("\(place): \(error.message). Export the bundle again")
        }
    }
}

extension Threshold {
    /// A number, or a list of one number per class.
    init(_ json: JSON, at place: String) throws {
        if let number = json.double {
            self = .number(number)
        } else {
            self = .perClass(try Fields.numbers(json, at: place))
        }
    }
}
