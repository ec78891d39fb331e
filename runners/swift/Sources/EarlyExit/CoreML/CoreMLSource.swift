#if canImport(CoreML)
import CoreML
import Foundation

/// Loads the models of a bundle.
struct CoreMLSource: Sendable {
    let bundle: ModelBundle
    let options: LoadOptions
    let cache: CompiledModels
    let asynchronous: Bool

    /// `asynchronous`: use asynchronous predictions, which the system must have.
    init(
        bundle: ModelBundle, options: LoadOptions, cache: CompiledModels,
        asynchronous: Bool = CoreMLModel.systemIsAsynchronous
    ) throws {
        guard bundle.manifest.target == "coreml" else {
            throw EarlyExitError.failure(
                "\(bundle.folder.path) was exported for '\(bundle.manifest.target)', but this package runs coreml:"
                    + " export it with berxit-export --target coreml")
        }
        self.bundle = bundle
        self.options = options
        self.cache = cache
        self.asynchronous = asynchronous
    }

    /// Loads the function of a segment for inputs of `length` tokens: from the compiled model of the bundle, or from one
    /// that is compiled here. `compiles` is called before a compilation.
    func load(
        _ segment: Segment, length: Int, on units: MLComputeUnits, compiles: @escaping @Sendable () -> Void = {}
    ) async throws -> CoreMLModel {
        let name = name(segment, length: length)
        let configuration = try configuration(segment, length: length, units: units)
        do {
            let model: MLModel
            if let ready = try await compiledInBundle(segment, configuration) {
                model = ready
            } else {
                model = try await compiledHere(segment, configuration, compiles)
            }
            return CoreMLModel(name: name, model: model, units: units, asynchronous: asynchronous)
        } catch let error as EarlyExitError {
            throw error
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            throw EarlyExitError.failure(
                "CoreML cannot load \(name) on \(units.name), even compiled again: \(error.localizedDescription). Free"
                    + " storage, update the system, or export for this system with --target-version",
                underlying: error)
        }
    }

    /// File and function, for messages.
    func name(_ segment: Segment, length: Int) -> String {
        [segment.file, segment.function(for: length, of: bundle.manifest.lengths)].compactMap { $0 }.joined(separator: " ")
    }

    func configuration(_ segment: Segment, length: Int, units: MLComputeUnits) throws -> MLModelConfiguration {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        options.configure?(configuration)
        if let function = segment.function(for: length, of: bundle.manifest.lengths) {
            guard #available(iOS 18, macCatalyst 18, macOS 15, tvOS 18, visionOS 2, *) else {
                throw EarlyExitError.failure(
                    "\(name(segment, length: length)): packages with several functions need iOS 18 or macOS 15. Export"
                        + " again with --target-version ios16")
            }
            configuration.functionName = function
        }
        return configuration
    }

    /// Compiled model of a segment: that of the bundle, or one that is compiled here.
    func compiledURL(_ segment: Segment) async throws -> URL {
        if let compiled = bundle.compiled(segment) { return compiled }
        return try await cache.url(sum: segment.sha256) { try await compile(segment) }
    }

    /// The model that is compiled in the bundle. nil if it contains none, or none that loads but a package.
    private func compiledInBundle(_ segment: Segment, _ configuration: MLModelConfiguration) async throws -> MLModel? {
        guard let compiled = bundle.compiled(segment) else { return nil }
        do {
            return try await MLModel.load(contentsOf: compiled, configuration: configuration)
        } catch {
            guard bundle.hasPackage(segment) else { throw error }
            return nil
        }
    }

    private func compiledHere(
        _ segment: Segment, _ configuration: MLModelConfiguration, _ compiles: @Sendable () -> Void
    ) async throws -> MLModel {
        try await cache.load(sum: segment.sha256) {
            compiles()
            return try await compile(segment)
        } load: {
            try await MLModel.load(contentsOf: $0, configuration: configuration)
        }
    }

    private func compile(_ segment: Segment) async throws -> URL {
        try bundle.checkPackage(segment)
        return try await MLModel.compileModel(at: bundle.url(of: segment.file))
    }
}
#endif
