import CoreML
import Foundation
import ObjectiveC
import XCTest

@testable import EarlyExit

/// Calls that the package makes to CoreML, and its handling of outputs and failures.
final class CoreMLExecutorTests: CoreMLTestCase {
    // MARK: Segments

    func testSegmentsRunInOrderOnTheOutputsOfThePreviousOnes() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"))
        _ = simulation.takeLog()
        let prediction = try await runner.predict("turn the kitchen lights off", threshold: 1)
        XCTAssertEqual(
            simulation.takeLog(),
            [
                "async layer 0 attention_mask [1, 16], input_ids [1, 16], token_type_ids [1, 16]",
                "async layer 2 attention_bias [1, 1], hidden_in [1, 1]",
                "async layer 3 attention_bias [1, 1], hidden_in [1, 1]",
                "async layer 6 attention_bias [1, 1], hidden_in [1, 1]",
            ])
        XCTAssertEqual(prediction.exitLayer, 6)
        let tokens = try runner.bundle.readTokenizer().encode("turn the kitchen lights off")
        let sum = Float(tokens.inputIds.reduce(0, +))
        let run = try await runner.executor.embed(tokens)
        let outputs = try await [run.layer(2), run.layer(3)]
        XCTAssertEqual(
            outputs, [LayerOutput(logits: [sum, 2, 0], lte: 0.2), LayerOutput(logits: [sum + 2, 3, 0], lte: 0.3)])
        await assertFails("no segment ends with layer 4. Export the bundle again") { try await run.layer(4) }
    }

    func testStridedFloat16OutputsAreReadCorrectly() async throws {
        simulation.useStridedOutputs()
        let runner = try await runner(bundleFolder("fewer_exits"))
        let run = try await runner.executor.embed(Tokens(repeating: 2, count: 8))
        let output = try await run.layer(2)
        XCTAssertEqual(output.logits, [16, 2, 0])
        XCTAssertEqual(output.lte ?? .nan, 0.2, accuracy: 1e-3)
    }

    func testFunctionsOfOnePackageAreLoadedByName() async throws {
        let folder = try bundleFolder("fewer_exits")
        try setFunctions(folder) { $0 }
        let runner = try await runner(folder, LoadOptions(warmUp: false))
        XCTAssertEqual(simulation.takeLog().filter { $0.hasPrefix("compile") }, ["compile embeddings.mlpackage"])
        let prediction = try await runner.predict("turn the lights off", threshold: 1)
        XCTAssertEqual(prediction.exitLayer, 6)
        XCTAssertEqual(
            simulation.takeLog().map { $0.split(separator: " ")[1] }, ["embeddings", "layer_02", "layer_03", "layer_06"])
    }

    func testFunctionsOfALengthAreLoadedAtItsFirstInput() async throws {
        let folder = try bundleFolder("fewer_exits")
        try setFunctions(folder) { name in ["\(name)_s8", "\(name)_s16"] }
        let runner = try await runner(folder)
        let loaded = simulation.takeLog()
        XCTAssertEqual(loaded.filter { $0.hasPrefix("load") }.count, 4)
        XCTAssertTrue(loaded.allSatisfy { !$0.contains("s16") })
        XCTAssertEqual([8, 16].map { runner.executor.openingSeconds(2, tokens: $0) > 0 }, [false, true])
        let prediction = try await runner.predict("turn the kitchen lights off, please", threshold: 1)
        XCTAssertEqual(prediction.exitLayer, 6)
        let log = simulation.takeLog()
        XCTAssertEqual(log.filter { $0.hasPrefix("load") }.count, 4)
        XCTAssertEqual(
            log.filter { $0.hasPrefix("async") }.map { $0.split(separator: " ")[1] },
            ["embeddings_s16", "layer_02_s16", "layer_03_s16", "layer_06_s16"])
        let both = try await self.runner(folder, LoadOptions(lengths: [8, 16]))
        XCTAssertEqual([8, 16].map { both.executor.openingSeconds(2, tokens: $0) }, [0, 0])
    }

    func testFunctionsThatDoNotMatchTheLengthsAreRejected() async throws {
        let folder = try bundleFolder("fewer_exits")
        try setFunctions(folder) { [$0] }
        assertFails(try ModelBundle(at: folder), "segment 0 has 1 functions for 2 lengths")
    }

    func testOneGraphRunsInOneCall() async throws {
        let folder = try bundleFolder("fewer_exits")
        let without = try await runner(folder).oneGraph()
        XCTAssertNil(without)
        try change(folder) { manifest in
            let segments = try XCTUnwrap(manifest["segments"] as? [[String: Any]])
            var full = segments[3]
            for key in ["file", "sha256", "inputs"] { full[key] = segments[0][key] }
            full["function"] = "full"
            full["outputs"] = try XCTUnwrap(full["outputs"] as? [[String: Any]]).filter { $0["role"] as? String != "hidden" }
            manifest["full"] = full
        }
        let oneGraph = try await runner(folder).oneGraph()
        let graph = try XCTUnwrap(oneGraph)
        _ = simulation.takeLog()
        let prediction = try await graph.predict("turn the lights off")
        XCTAssertEqual(prediction.exitLayer, 6)
        XCTAssertEqual(prediction.stoppedBy, .lastLayer)
        let runs = simulation.takeLog().filter { $0.hasPrefix("async") }
        XCTAssertEqual(runs, ["async full attention_mask [1, 8], input_ids [1, 8], token_type_ids [1, 8]"])
    }

    func testLTECertaintyIsTheSigmoidOfItsLogit() async throws {
        let folder = try bundleFolder("fewer_exits")
        try change(folder) { manifest in
            var segments = try XCTUnwrap(manifest["segments"] as? [[String: Any]])
            for i in 1..<segments.count {
                segments[i]["outputs"] = try XCTUnwrap(segments[i]["outputs"] as? [[String: Any]]).map { output in
                    output["role"] as? String == "lte" ? output.merging(["role": "lte_logit"]) { $1 } : output
                }
            }
            manifest["segments"] = segments
        }
        let run = try await runner(folder).executor.embed(Tokens(repeating: 2, count: 8))
        let output = try await run.layer(2)
        XCTAssertEqual(output.lte ?? .nan, 1 / (1 + exp(-0.2)), accuracy: 1e-6)
    }

    func testBundleForAnotherTargetIsRejected() async throws {
        let folder = try bundleFolder("lte")
        try change(folder) { $0["target"] = "onnxruntime" }
        await assertFails("was exported for 'onnxruntime'") { try await runner(folder) }
    }

    // MARK: Synchronous and asynchronous predictions

    func testTasksShareAModelThroughAsynchronousPredictions() async throws {
        try await assertTasksShareAModel(asynchronous: true, log: "async layer")
    }

    func testTasksWaitForEachOtherOnSystemsBeforeIOS17() async throws {
        try await assertTasksShareAModel(asynchronous: false, log: "layer")
    }

    private func assertTasksShareAModel(asynchronous: Bool, log: String) async throws {
        let runner = try await runner(bundleFolder("lte"), asynchronous: asynchronous)
        let expected = try await runner.predict("play some jazz").exitLayer
        _ = simulation.takeLog()
        let found = await withTaskGroup(of: Int?.self) { group in
            for _ in 0..<40 { group.addTask { try? await runner.predict("play some jazz").exitLayer } }
            return await group.reduce(into: []) { $0.append($1) }
        }
        XCTAssertEqual(found, [Int](repeating: expected, count: 40))
        XCTAssertTrue(simulation.takeLog().allSatisfy { $0.hasPrefix(log) })
    }

    func testSynchronousPredictionsFreeTheirOutputs() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"), asynchronous: false)
        let (before, opened) = (simulation.liveOutputs.value, Pools.opened.value)
        for _ in 0..<20 { _ = try await runner.predict("turn the lights off", threshold: 1) }
        XCTAssertEqual(simulation.liveOutputs.value, before)
        XCTAssertEqual(Pools.opened.value - opened, 20 * 4)
    }

    func testFailedPredictionNamesSegmentUnitsAndCause() async throws {
        let runner = try await runner(bundleFolder("lte"), LoadOptions(computeUnits: .cpuAndNeuralEngine))
        let segment = runner.manifest.segments[1]
        let source = try source(runner.bundle, LoadOptions(computeUnits: .cpuAndNeuralEngine))
        let model = try await source.load(segment, length: 8, on: .cpuAndNeuralEngine)
        do {
            _ = try await model.predict(MLDictionaryFeatureProvider(dictionary: [:]))
            XCTFail("no error")
        } catch let error as EarlyExitError {
            XCTAssertTrue(
                error.message.hasPrefix("CoreML cannot run segments/layer_01.mlpackage on CPU and Neural Engine: fed []"),
                error.message)
            XCTAssertEqual(error.underlyingError as? StandinError, StandinError("fed []"))
        }
    }

    // MARK: Compiled models

    func testPackagesAreCompiledOnceAndLoadedForTheComputeUnits() async throws {
        let folder = try bundleFolder("fewer_exits")
        let cache = try emptyCache()
        for (units, compiled) in [(CoreMLExecutor.defaultComputeUnits, 4), (.cpuOnly, 0)] {
            _ = try await runner(folder, LoadOptions(computeUnits: units), cache: cache)
            let log = simulation.takeLog()
            XCTAssertEqual(log.filter { $0.hasPrefix("compile") }.count, compiled)
            XCTAssertEqual(log.filter { $0 == "load on \(units)" }.count, 4)
        }
    }

    func testLoadThatFailsOnceIsRepeatedWithANewCompilation() async throws {
        simulation.failLoads([StandinError("busy")])
        let runner = try await runner(bundleFolder("one_exit"))
        let log = simulation.takeLog()
        XCTAssertEqual(log.filter { $0 == "compile embeddings.mlpackage" }.count, 2)
        let prediction = try await runner.predict("turn the lights off")
        XCTAssertEqual(prediction.exitLayer, 6)
    }

    func testLoadThatFailsTwiceHasTheUnderlyingError() async throws {
        simulation.failLoads([StandinError("first"), StandinError("second")])
        do {
            _ = try await runner(bundleFolder("one_exit"))
            XCTFail("no error")
        } catch let error as EarlyExitError {
            XCTAssertTrue(
                error.message.hasPrefix(
                    "CoreML cannot load segments/embeddings.mlpackage on all compute units, even compiled again: second."),
                error.message)
            XCTAssertEqual(error.underlyingError as? StandinError, StandinError("second"))
        }
    }

    func testFullDiskDoesNotPreventPredictions() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.0.0") { _, to in
            try FileManager.default.createDirectory(at: to, withIntermediateDirectories: true)
            throw CocoaError(.fileWriteOutOfSpace)
        }
        let runner = try await runner(bundleFolder("one_exit"), cache: cache)
        let prediction = try await runner.predict("turn the lights off")
        XCTAssertEqual(prediction.exitLayer, 6)
    }

    func testDamagedPackageIsRejectedBeforeItIsCompiled() async throws {
        let folder = try bundleFolder("one_exit")
        try Data("layer 5".utf8).write(to: folder.appendingPathComponent("segments/layer_06.mlpackage/model"))
        await assertFails("layer_06.mlpackage: checksum differs from the manifest") { try await runner(folder) }
    }

    func testCompiledModelThatTheManifestNamesIsUsedAndVerified() async throws {
        let folder = try bundleFolder("one_exit")
        let place = folder.appendingPathComponent("segments/compiled.mlmodelc")
        try FileManager.default.moveItem(at: folder.appendingPathComponent("segments/layer_06.mlpackage"), to: place)
        let sum = try Checksum.of(place)
        try change(folder) { manifest in
            var segments = try XCTUnwrap(manifest["segments"] as? [[String: Any]])
            segments[1]["compiled"] = ["file": "segments/compiled.mlmodelc", "sha256": sum]
            manifest["segments"] = segments
        }
        let runner = try await runner(folder)
        XCTAssertEqual(simulation.takeLog().filter { $0.hasPrefix("compile") }, ["compile embeddings.mlpackage"])
        XCTAssertNoThrow(try runner.bundle.verifyModels())
        try Data("layer 6 of another model".utf8).write(to: place.appendingPathComponent("model"))
        XCTAssertNoThrow(try ModelBundle(at: folder))
        assertFails(try ModelBundle(at: folder).verifyModels(), "compiled.mlmodelc: checksum differs")
    }

    func testCompiledModelOfTheBundleIsUsedWithoutCacheAndCompilation() async throws {
        let folder = try bundleFolder("one_exit")
        for name in ["embeddings", "layer_06"] {
            let place = folder.appendingPathComponent("segments/\(name)")
            try FileManager.default.moveItem(
                at: place.appendingPathExtension("mlpackage"), to: place.appendingPathExtension("mlmodelc"))
        }
        let root = try temporaryFolder()
        let runner = try await runner(folder, cache: CompiledModels(root: root, version: "18.0.0"))
        XCTAssertEqual(simulation.takeLog().filter { $0.hasPrefix("compile") }, [])
        XCTAssertEqual(try FileManager.default.subpathsOfDirectory(atPath: root.path), [])
        let prediction = try await runner.predict("turn the lights off")
        XCTAssertEqual(prediction.exitLayer, 6)
    }

    func testPackageReplacesACompiledModelThatDoesNotLoad() async throws {
        let folder = try bundleFolder("one_exit")
        try FileManager.default.createDirectory(
            at: folder.appendingPathComponent("segments/layer_06.mlmodelc"), withIntermediateDirectories: true)
        _ = try await runner(folder)
        XCTAssertEqual(
            simulation.takeLog().filter { $0.hasPrefix("compile") },
            ["compile embeddings.mlpackage", "compile layer_06.mlpackage"])
    }
}
