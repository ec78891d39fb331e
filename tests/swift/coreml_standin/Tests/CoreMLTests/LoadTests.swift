import CoreML
import Foundation
import XCTest

@testable import EarlyExit

/// Options of `load`, and the times at which models are loaded and freed.
final class LoadTests: CoreMLTestCase {
    func testDefaultComputeUnitsFollowThePlatform() {
        XCTAssertEqual(Platform.simulator.computeUnits, .cpuOnly)
        XCTAssertEqual(Platform.phoneOrTablet.computeUnits, .cpuAndNeuralEngine)
        XCTAssertEqual(Platform.other.computeUnits, .all)
    }

    func testLoadReportsItsProgress() async throws {
        let reports = Locked([LoadProgress]())
        let bundle = try ModelBundle(at: bundleFolder("one_exit"))
        let executor = try CoreMLExecutor(source(bundle, LoadOptions()))
        try await executor.load { report in reports.withLock { $0.append(report) } }
        let embeddings = "segments/embeddings.mlpackage"
        let layer = "segments/layer_06.mlpackage"
        // Two segments, and two runs at each of two lengths.
        XCTAssertEqual(
            reports.withLock { $0 },
            [
                LoadProgress(step: .loading(embeddings), fraction: 0),
                LoadProgress(step: .compiling(embeddings), fraction: 0),
                LoadProgress(step: .loading(layer), fraction: 1 / 6),
                LoadProgress(step: .compiling(layer), fraction: 1 / 6),
                LoadProgress(step: .warmingUp, fraction: 2 / 6), LoadProgress(step: .warmingUp, fraction: 3 / 6),
                LoadProgress(step: .warmingUp, fraction: 4 / 6), LoadProgress(step: .warmingUp, fraction: 5 / 6),
                LoadProgress(step: .completed, fraction: 1),
            ])
    }

    func testConfigurationHookIsAppliedToEveryModel() async throws {
        let names = Locked([MLComputeUnits]())
        let options = LoadOptions(computeUnits: .cpuAndGPU, warmUp: false) { configuration in
            names.withLock { $0.append(configuration.computeUnits) }
            configuration.computeUnits = .cpuOnly
        }
        _ = try await runner(bundleFolder("fewer_exits"), options)
        XCTAssertEqual(names.withLock { $0 }, [.cpuAndGPU, .cpuAndGPU, .cpuAndGPU, .cpuAndGPU])
        XCTAssertEqual(simulation.takeLog().filter { $0 == "load on cpuOnly" }.count, 4)
    }

    func testLazyRunnerLoadsALayerWhenAnInputReachesIt() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"), LoadOptions(lazy: true))
        XCTAssertEqual(loads(), 2)
        XCTAssertEqual(seconds(runner).map { $0 > 0 }, [false, true, true])
        _ = try await runner.predict("turn the lights off", threshold: 0)
        XCTAssertEqual(loads(), 0)
        _ = try await runner.predict("turn the lights off", threshold: 1)
        XCTAssertEqual(loads(), 2)
        XCTAssertEqual(seconds(runner), [0, 0, 0])
    }

    func testDeadlineCountsTheLoadingOfALazyLayer() async throws {
        simulation.delayLoads(on: .all, seconds: 0.2)
        let runner = try await runner(bundleFolder("fewer_exits"), LoadOptions(computeUnits: .all, lazy: true))
        let early = try await runner.predict("turn the lights off", threshold: 1, deadlineMs: 100)
        XCTAssertEqual(early.exitLayer, 2)
        XCTAssertEqual(early.stoppedBy, .deadline)
        let late = try await runner.predict("turn the lights off", threshold: 1, deadlineMs: 10_000)
        XCTAssertEqual(late.exitLayer, 6)
    }

    func testTasksThatNeedOneModelLoadItOnce() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"), LoadOptions(lazy: true))
        _ = simulation.takeLog()
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<8 {
                group.addTask { _ = try await runner.predict("turn the lights off", threshold: 1) }
            }
            try await group.waitForAll()
        }
        XCTAssertEqual(loads(), 2)
    }

    func testCancelledTaskDoesNotStopALoadThatOthersNeed() async throws {
        let bundle = try ModelBundle(at: bundleFolder("one_exit"))
        let executor = try CoreMLExecutor(source(bundle, LoadOptions(computeUnits: .all, warmUp: false)))
        simulation.delayLoads(on: .all, seconds: 0.05)
        let first = Task { try await executor.load() }
        let second = Task { try await executor.load() }
        first.cancel()
        try await second.value
        XCTAssertEqual(loads(), 2)
    }

    func testUnloadFreesTheModelsUntilTheNextPrediction() async throws {
        let runner = try await runner(bundleFolder("fewer_exits"))
        runner.unload()
        XCTAssertEqual(seconds(runner), [.infinity, .infinity, .infinity])
        _ = simulation.takeLog()
        let prediction = try await runner.predict("turn the lights off", threshold: 1)
        XCTAssertEqual(prediction.exitLayer, 6)
        let log = simulation.takeLog()
        XCTAssertEqual(log.filter { $0.hasPrefix("load") }.count, 4)
        XCTAssertEqual(log.filter { $0.hasPrefix("compile") }, [])
    }

    func testRunnerStartsOnTheCPUAndChangesToTheNeuralEngine() async throws {
        let ready = simulation.holdLoads(on: .cpuAndNeuralEngine)
        let runner = try await runner(
            bundleFolder("fewer_exits"), LoadOptions(computeUnits: .cpuAndNeuralEngine, startOnCPU: true))
        XCTAssertEqual(runner.computeUnits, .cpuOnly)
        let first = try await runner.predict("turn the lights off", threshold: 1)
        ready()
        try await runner.finishLoading()
        XCTAssertEqual(runner.computeUnits, .cpuAndNeuralEngine)
        let second = try await runner.predict("turn the lights off", threshold: 1)
        XCTAssertEqual(first.scores, second.scores)
        XCTAssertEqual(simulation.takeLog().filter { $0.hasPrefix("compile") }.count, 4, "compiled once for both")
    }

    func testRunnerStaysOnTheCPUIfTheNeuralEngineFails() async throws {
        let ready = simulation.holdLoads(on: .cpuAndNeuralEngine)
        let runner = try await runner(
            bundleFolder("one_exit"), LoadOptions(computeUnits: .cpuAndNeuralEngine, startOnCPU: true))
        simulation.failLoads([StandinError("no engine"), StandinError("no engine")])
        ready()
        await assertFails("on CPU and Neural Engine, even compiled again: no engine") { try await runner.finishLoading() }
        XCTAssertEqual(runner.computeUnits, .cpuOnly)
        let prediction = try await runner.predict("turn the lights off")
        XCTAssertEqual(prediction.exitLayer, 6)
    }

    func testUnloadStopsTheChangeOfComputeUnits() async throws {
        let ready = simulation.holdLoads(on: .cpuAndNeuralEngine)
        let bundle = try ModelBundle(at: bundleFolder("one_exit"))
        let executor = try CoreMLExecutor(
            source(bundle, LoadOptions(computeUnits: .cpuAndNeuralEngine, startOnCPU: true)))
        try await executor.load()
        let upgrade = Task { try await executor.finishLoading() }
        executor.unload()
        ready()
        _ = await upgrade.result
        XCTAssertEqual(executor.computeUnits, .cpuOnly, "starts on the CPU again")
    }

    /// Expected load times of the layers of the bundle "fewer_exits", in seconds.
    private func seconds(_ runner: EarlyExitRunner) -> [Double] {
        [2, 3, 6].map { runner.executor.openingSeconds($0, tokens: 8) }
    }

    /// Number of loads since the previous call of this function.
    private func loads() -> Int {
        simulation.takeLog().filter { $0.hasPrefix("load") }.count
    }
}
