import CoreML
import Foundation
import XCTest

@testable import EarlyExit

/// Test of a runner on the stand-in for CoreML.
class CoreMLTestCase: XCTestCase {
    let simulation = Simulation.shared

    override func setUp() {
        simulation.reset()
    }

    func emptyCache() throws -> CompiledModels {
        CompiledModels(root: try temporaryFolder(), version: "18.0.0")
    }

    func source(
        _ bundle: ModelBundle, _ options: LoadOptions, cache: CompiledModels? = nil, asynchronous: Bool = true
    ) throws -> CoreMLSource {
        try CoreMLSource(
            bundle: bundle, options: options, cache: cache ?? emptyCache(), asynchronous: asynchronous)
    }

    func runner(
        _ folder: URL, _ options: LoadOptions = LoadOptions(), cache: CompiledModels? = nil, asynchronous: Bool = true
    ) async throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: folder)
        let executor = try CoreMLExecutor(source(bundle, options, cache: cache, asynchronous: asynchronous))
        try await executor.load()
        return try EarlyExitRunner(bundle: bundle, executor: executor)
    }

    /// Makes all segments functions of one package; `names` returns the function, or those per length, of "layer_02".
    func setFunctions(_ folder: URL, _ names: (String) -> Any) throws {
        try change(folder) { manifest in
            var segments = try XCTUnwrap(manifest["segments"] as? [[String: Any]])
            for i in segments.indices {
                let layer = try XCTUnwrap(segments[i]["layer"] as? Int)
                for key in ["file", "sha256"] { segments[i][key] = segments[0][key] }
                let found = names(layer == 0 ? "embeddings" : "layer_0\(layer)")
                segments[i][found is String ? "function" : "functions"] = found
            }
            manifest["segments"] = segments
        }
    }

    func change(_ folder: URL, _ edit: (inout [String: Any]) throws -> Void) throws {
        let place = folder.appendingPathComponent("manifest.json")
        var manifest = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: place)) as? [String: Any])
        try edit(&manifest)
        try JSONSerialization.data(withJSONObject: manifest).write(to: place)
    }
}
