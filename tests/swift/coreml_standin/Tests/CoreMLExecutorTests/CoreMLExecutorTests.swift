import CoreML
import Foundation
import XCTest

@testable import EarlyExit

/// Calls that the executor makes to CoreML models, and its handling of their outputs.
final class CoreMLExecutorTests: XCTestCase {
    override func setUp() {
        _ = MLModel.log.take()
    }

    func testSegmentsRunInTheirOrderOnWhatTheOnesBeforeMade() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"))
        _ = MLModel.log.take()
        let answer = try runner.predict("turn the kitchen lights off", threshold: 1)
        XCTAssertEqual(
            MLModel.log.take(),
            [
                "layer 0 attention_mask [1, 16], input_ids [1, 16], token_type_ids [1, 16]",
                "layer 2 attention_bias [1, 1], hidden_in [1, 1]", "layer 3 attention_bias [1, 1], hidden_in [1, 1]",
                "layer 6 attention_bias [1, 1], hidden_in [1, 1]",
            ])
        XCTAssertEqual(answer.exitLayer, 6)
        let sum = try runner.bundle.readTokenizer().encode("turn the kitchen lights off").inputIds.reduce(0, +)
        let run = try XCTUnwrap(runner.executor.embed(runner.bundle.readTokenizer().encode("turn the kitchen lights off")))
        XCTAssertEqual(try run.layer(2), LayerOutput(logits: [Float(sum), 2, 0], lte: 0.2))
        XCTAssertEqual(try run.layer(3), LayerOutput(logits: [Float(sum) + 2, 3, 0], lte: 0.3))
        XCTAssertThrowsError(try run.layer(4)) { error in
            XCTAssertEqual(message(error), "no segment ends with layer 4. Export the bundle again")
        }
    }

    func testPackagesAreCompiledOnceAndLoadedForTheUnitsAskedFor() async throws {
        let folder = try bundleFolder("fewer_exits")
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.0.0")
        for (units, compiled) in [(CoreMLExecutor.defaultComputeUnits, 4), (.cpuOnly, 0)] {
            let bundle = try ModelBundle(at: folder)
            _ = try await CoreMLExecutor(bundle: bundle, computeUnits: units, cache: cache)
            let log = MLModel.log.take()
            XCTAssertEqual(log.filter { $0.hasPrefix("compile") }.count, compiled)
            XCTAssertEqual(log.filter { $0 == "load on \(units)" }.count, 4)
        }
    }

    func testFunctionsOfOnePackageAreLoadedByName() async throws {
        let folder = try bundleFolder("fewer_exits")
        let place = folder.appendingPathComponent("manifest.json")
        var manifest = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: place)) as? [String: Any])
        var segments = try XCTUnwrap(manifest["segments"] as? [[String: Any]])
        for i in segments.indices {
            for key in ["file", "sha256"] { segments[i][key] = segments[0][key] }
            segments[i]["function"] = ["embeddings", "layer_02", "layer_03", "layer_06"][i]
        }
        manifest["segments"] = segments
        try JSONSerialization.data(withJSONObject: manifest).write(to: place)

        let runner = try await runner(folder)
        XCTAssertEqual(MLModel.log.take().filter { $0.hasPrefix("compile") }, ["compile embeddings.mlpackage"])
        XCTAssertEqual(try runner.predict("turn the lights off", threshold: 1).exitLayer, 6)
        XCTAssertEqual(
            MLModel.log.take().map { $0.split(separator: " ")[0] }, ["embeddings", "layer_02", "layer_03", "layer_06"])
    }

    func testSeveralThreadsTakeTurnsOnAModel() async throws {
        let runner = try await runner(bundleFolder("lte"))
        let expected = try runner.predict("play some jazz").exitLayer
        let found = await withTaskGroup(of: Int?.self) { group in
            for _ in 0..<40 { group.addTask { try? runner.predict("play some jazz").exitLayer } }
            return await group.reduce(into: []) { $0.append($1) }
        }
        XCTAssertEqual(found, [Int](repeating: expected, count: 40))
    }

    func testABundleForAnotherBackEndIsRefused() async throws {
        let folder = try bundleFolder("lte")
        let place = folder.appendingPathComponent("manifest.json")
        let text = try String(contentsOf: place, encoding: .utf8)
        try text.replacingOccurrences(of: "\"coreml\"", with: "\"onnxruntime\"")
            .write(to: place, atomically: true, encoding: .utf8)
        do {
            _ = try await runner(folder)
            XCTFail("it was opened")
        } catch {
            XCTAssertTrue(message(error).contains("was exported for 'onnxruntime'"), message(error))
        }
    }

    private func runner(_ folder: URL) async throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: folder)
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.0.0")
        return try EarlyExitRunner(
            bundle: bundle, executor: await CoreMLExecutor(bundle: bundle, computeUnits: .all, cache: cache))
    }
}
