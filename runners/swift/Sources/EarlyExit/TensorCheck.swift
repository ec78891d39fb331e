/// Checks of the tensors of a manifest for CoreML against the roles, dtypes and shapes of docs/bundle.md, "segments". Without them, a wrong
/// name or shape is found only when a segment runs.
struct TensorCheck {
    private static let tokens = ["input_ids", "token_type_ids", "attention_mask"]
    /// Roles that the embeddings write and the layers read.
    private static let carried = ["hidden", "attention_bias", "token_weights"]

    private let manifest: Manifest
    private let place: String
    private let embeddings: Segment

    /// `place`: name of the file, for messages. The manifest has at least one segment.
    init(_ manifest: Manifest, at place: String) {
        self.manifest = manifest
        self.place = place
        embeddings = manifest.segments[0]
    }

    /// Throws for the first tensor that the format does not allow.
    func run() throws {
        for segment in manifest.functions {
            for tensors in [segment.inputs, segment.outputs] { try checkNames(tensors, of: segment) }
            try checkConstants(of: segment)
            for tensor in segment.varying + segment.outputs { try check(tensor, of: segment) }
        }
        try check("reads", embeddings.varying, of: embeddings, needed: ["input_ids", "attention_mask"], known: Self.tokens)
        try check("writes", embeddings.outputs, of: embeddings, needed: ["hidden", "attention_bias"], known: Self.carried)
        for segment in manifest.segments.dropFirst() { try checkLayer(segment) }
        try checkSharedFunctions()
        if let full = manifest.full { try checkOneGraph(full) }
    }

    private func checkNames(_ tensors: [TensorInfo], of segment: Segment) throws {
        for names in [tensors.map(\.name), tensors.map(\.role).filter { $0 != "constant" }] {
            var known: Set<String> = []
            if let twice = names.first(where: { !known.insert($0).inserted }) {
                throw misfit(segment, "'\(twice)' is listed twice")
            }
        }
    }

    private func checkConstants(of segment: Segment) throws {
        for name in segment.constants.keys.sorted() where !segment.inputs.contains(where: { $0.name == name }) {
            throw misfit(segment, "constants lists '\(name)', which is not an input")
        }
        for input in segment.inputs {
            let constant = segment.constants[input.name]
            guard (input.role == "constant") == (constant != nil) else {
                throw misfit(
                    segment, "constants must list exactly the inputs of role constant, but '\(input.name)' has role"
                        + " '\(input.role)'")
            }
            guard let constant else { continue }
            let shape = constant.shape.map { String($0) }
            guard constant.dtype == input.dtype, shape == input.shape, constant.shape.allSatisfy({ $0 >= 0 }) else {
                throw misfit(
                    segment, "input '\(input.name)' is \(input.dtype) \(text(input.shape)), but its constant is"
                        + " \(constant.dtype) \(text(shape))")
            }
        }
    }

    private func check(_ tensor: TensorInfo, of segment: Segment) throws {
        let expected = shapes(of: tensor.role)
        guard !expected.isEmpty else { throw misfit(segment, "'\(tensor.name)' has the unknown role '\(tensor.role)'") }
        guard expected.contains(tensor.shape) else {
            throw misfit(
                segment, "'\(tensor.name)' of role \(tensor.role) has shape \(text(tensor.shape)), expected"
                    + " \(expected.map(text).joined(separator: " or "))")
        }
        let dtypes = Self.tokens.contains(tensor.role) ? ["int32"] : ["float32", "float16"]
        guard dtypes.contains(tensor.dtype) else {
            throw misfit(
                segment, "'\(tensor.name)' of role \(tensor.role) has dtype '\(tensor.dtype)', expected"
                    + " \(dtypes.joined(separator: " or "))")
        }
    }

    /// The shapes that a role may have; none for an unknown role.
    private func shapes(of role: String) -> [[String]] {
        let model = manifest.model
        // A bundle with one length may have fixed shapes.
        let only = manifest.lengths.count == 1 ? String(manifest.lengths[0]) : "length"
        let isFixed = embeddings.inputs.contains { $0.role == "input_ids" && $0.shape.contains(only) }
        let length = isFixed ? only : "length"
        let batch = manifest.maxBatch == 1 ? "1" : "batch"
        let size = String(model.hiddenSize)
        switch role {
        case "hidden": return [[batch, length, size], [batch, size, "1", length]]  // the second is the layout "ane"
        case "attention_bias":
            let bias = embeddings.outputs.first { $0.role == role }?.shape ?? []
            let heads = bias.count == 4 ? Int(bias[1]) : nil
            return [[batch, "1", "1", length]] + (heads.map { [[batch, String($0), length, length]] } ?? [])
        case "token_weights": return [[batch, "1", length]]
        case "logits": return [[batch] + (model.kind == .tokens ? [length] : []) + [String(model.outputs)]]
        case "lte", "lte_logit": return [[batch]]
        default: return Self.tokens.contains(role) ? [[batch, length]] : []
        }
    }

    private func checkLayer(_ segment: Segment) throws {
        let certainty = segment.outputs.contains { $0.role == "lte_logit" } ? "lte_logit" : "lte"
        let exit = ["logits"] + (manifest.model.lte ? [certainty] : [])
        let hidden = segment.layer == manifest.model.layers ? [] : ["hidden"]
        try check("reads", segment.varying, of: segment, needed: ["hidden"], known: embeddings.outputs.map(\.role))
        try check("writes", segment.outputs, of: segment, needed: exit + hidden, known: exit + ["hidden"])
        for tensor in segment.varying + segment.outputs {
            guard let made = embeddings.outputs.first(where: { $0.role == tensor.role }) else { continue }
            guard made.dtype == tensor.dtype, made.shape == tensor.shape else {
                throw misfit(
                    segment, "'\(tensor.name)' is \(tensor.dtype) \(text(tensor.shape)), but the embeddings segment writes"
                        + " \(tensor.role) as \(made.dtype) \(text(made.shape))")
            }
        }
    }

    private func check(
        _ verb: String, _ tensors: [TensorInfo], of segment: Segment, needed: [String], known: [String]
    ) throws {
        let found = tensors.map(\.role)
        if let missing = needed.first(where: { !found.contains($0) }) {
            throw misfit(segment, "it \(verb) no \(missing)")
        }
        if let surplus = found.first(where: { !known.contains($0) }) {
            throw misfit(segment, "it \(verb) \(surplus), which is not allowed at its position")
        }
    }

    /// A function that several segments name is loaded once: its tensors must be equal.
    private func checkSharedFunctions() throws {
        var known: [[String]: (layer: Int, tensor: TensorInfo)] = [:]
        for segment in manifest.segments {
            for (kind, tensors) in [("input", segment.inputs), ("output", segment.outputs)] {
                for tensor in tensors {
                    let key = [segment.file, segment.function ?? "", kind, tensor.name] + segment.functions
                    let other = known[key, default: (segment.layer, tensor)]
                    known[key] = other
                    guard other.tensor == tensor else {
                        throw misfit(
                            segment, "\(kind) '\(tensor.name)' of \(segment.file) differs from that of the segment of layer"
                                + " \(other.layer)")
                    }
                }
            }
        }
    }

    /// Full depth as one graph reads the inputs of the embeddings and writes the outputs of the last exit.
    private func checkOneGraph(_ full: Segment) throws {
        let inputs = embeddings.varying.map(\.role)
        let outputs = manifest.segments[manifest.segments.count - 1].outputs.map(\.role).filter { $0 != "hidden" }
        guard full.layer == manifest.model.layers, Set(full.varying.map(\.role)) == Set(inputs),
            Set(full.outputs.map(\.role)) == Set(outputs)
        else {
            throw EarlyExitError.failure(
                "\(place): full must have layer \(manifest.model.layers), read \(inputs.joined(separator: ", ")) and write"
                    + " \(outputs.joined(separator: ", ")). Export the bundle again")
        }
    }

    private func text(_ shape: [String]) -> String { "(\(shape.joined(separator: ", ")))" }

    private func misfit(_ segment: Segment, _ problem: String) -> EarlyExitError {
        EarlyExitError.failure("\(place): segment of layer \(segment.layer): \(problem). Export the bundle again")
    }
}

extension Segment {
    /// The inputs that are not constant.
    fileprivate var varying: [TensorInfo] { inputs.filter { $0.role != "constant" } }
}
