import Foundation
import XCTest

@testable import EarlyExit

/// Behaviour of the runner that the test vectors do not cover.
final class RunnerTests: XCTestCase {
    func testInvalidInputIsRejected() async throws {
        let runner = try runner("confidence")
        await assertFails("the text is empty") { try await runner.predict("  \n") }
        assertFails(try runner.stream("  \n"), "the text is empty")
        await assertFails("this model expects single texts (custom), but was given a pair") {
            try await runner.predict("one", "two")
        }
        let pairs = try self.runner("pairs")
        await assertFails("this model expects pairs of texts") { try await pairs.predict("one") }
        await assertFails("threshold 1.5 is out of range") { try await runner.predict("one", threshold: 1.5) }
        await assertFails("deadlineMs is 0.0") { try await runner.predict("one", deadlineMs: 0) }
    }

    func testPredictionIsDecidedByTheLogits() async throws {
        // As float32, the probabilities of logits that differ by least are equal.
        let (tiny, least): (Float, Float) = (3e-8, 3e-11)
        func predict(_ name: String, _ logits: [Float]) async throws -> Prediction {
            let bundle = try ModelBundle(at: bundleFolder(name))
            let layers = [LayerOutput](repeating: LayerOutput(logits: logits, lte: 0.5), count: bundle.manifest.model.layers)
            return try await EarlyExitRunner(bundle: bundle, executor: Stored([layers])).predict("one")
        }
        let multilabel = try await predict("multilabel", [tiny, 0, least])
        let labels = try ModelBundle(at: bundleFolder("multilabel")).manifest.model.labels
        XCTAssertEqual(multilabel.labels, [labels[0], labels[2]])
        XCTAssertEqual(multilabel.scores[labels[0]] ?? .nan, 0.5, accuracy: 1e-6)
        let one = try await predict("confidence", [0, least, least])
        XCTAssertEqual(one.label, try ModelBundle(at: bundleFolder("confidence")).manifest.model.labels[1])
        let heads = try await predict("heads", [0, least, 0, 0, least])
        XCTAssertEqual(heads.label, "what=music|room=none")
        let tags = try await predict("tokens", [Float](repeating: 0, count: 5) + [0, least, 0, 0, 0])
        XCTAssertEqual(tags.label, try ModelBundle(at: bundleFolder("tokens")).manifest.model.labels[1])
    }

    func testBatchIsRejectedBeforeAnyInputRuns() async throws {
        let bundle = try ModelBundle(at: bundleFolder("confidence"))
        let stored = try Stored(bundle.readGolden())
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored)
        await assertFails("the batch is empty") { try await runner.predictBatch([String]()) }
        await assertFails("text 1 is empty") { try await runner.predictBatch(["one", " "]) }
        await assertFails("was given a pair") { try await runner.predictBatch([("one", "two")]) }
        XCTAssertEqual(stored.ran, [])
    }

    func testOnlySegmentsUpToTheExitRun() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        let prediction = try await EarlyExitRunner(bundle: bundle, executor: stored).predict("one", threshold: 0)
        XCTAssertEqual(prediction.exitLayer, 2)
        XCTAssertEqual(stored.ran, [2])
    }

    func testCancelledTaskStopsBeforeTheNextSegment() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let task = Locked<Task<Prediction, any Error>?>(nil)
        // The task cancels itself in layer 3 of 2, 3 and 6.
        let stored = try Stored(bundle.readGolden()) { layer in
            if layer == 3 { task.withLock { $0?.cancel() } }
        }
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored)
        let started = task.withLock { task in
            let started = Task { try await runner.predict("one", threshold: 1) }
            task = started
            return started
        }
        do {
            _ = try await started.value
            XCTFail("not cancelled")
        } catch {
            XCTAssertTrue(error is CancellationError, "\(error)")
        }
        XCTAssertEqual(stored.ran, [2, 3])
    }

    func testStreamRunsALayerWhenTheIterationReachesIt() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored)
        let stream = try runner.stream("one")
        XCTAssertEqual(stored.inputs.count, 0)
        for try await prediction in stream where prediction.exitLayer == 3 { break }
        XCTAssertEqual(stored.ran, [2, 3])
    }

    func testStreamAndPredictWorkOnTheMainActor() async throws {
        let runner = try runner("fewer_exits")
        let layers = try await exitLayersOnTheMainActor(runner)
        XCTAssertEqual(layers, [2, 3, 6, 6])
    }

    func testExpiredDeadlineGivesEachTextItsFirstExit() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let runner = try EarlyExitRunner(bundle: bundle, executor: Stored(bundle.readGolden()))
        let late = try await runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 1e-6)
        XCTAssertEqual(late.map(\.exitLayer), [2, 2, 2])
        XCTAssertEqual(late.map(\.stoppedBy), [.deadline, .deadline, .deadline])
        XCTAssertEqual(late.map(\.late), [true, true, true])
        let early = try await runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 1e7)
        XCTAssertEqual(early.map(\.exitLayer), [6, 6, 6])
        XCTAssertEqual(early.map(\.stoppedBy), [.lastLayer, .lastLayer, .lastLayer])
        XCTAssertEqual(early.map(\.late), [false, false, false])
    }

    func testTextsOfABatchShareTheRemainingTime() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored) { stored.seconds }
        // Layer 3 takes 10 ms; layers 4 to 6 are expected to take 3 x 20 ms. The first text has 53 ms, the second 140 /
        // 2 ms, the third 120 ms: 20 ms to layer 3, and 60 ms more.
        let predictions = try await runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 160)
        XCTAssertEqual(predictions.map(\.exitLayer), [3, 3, 6])
        for (prediction, milliseconds) in zip(predictions, [20, 40, 70]) {
            XCTAssertEqual(prediction.latencyMs, Double(milliseconds), accuracy: 1e-6)
        }
    }

    func testLongTextIsTokenizedUntilTheDeadline() async throws {
        let runner = try runner("confidence")
        let blanks = "one" + String(repeating: " ", count: 200_000) + "two"
        let whole = try await runner.predict(blanks)
        XCTAssertFalse(whole.truncated)
        let prefix = try await runner.predict(blanks, deadlineMs: 1e-3)
        XCTAssertTrue(prefix.truncated)
    }

    func testWarmUpRunsEverySegmentTwiceAtEveryLength() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        try await EarlyExitRunner(bundle: bundle, executor: stored).warmUp()
        XCTAssertEqual(stored.inputs.map(\.count).sorted(), [8, 8, 16, 16])
        XCTAssertTrue(stored.inputs.allSatisfy { $0.attentionMask.allSatisfy { $0 == 1 } })
        XCTAssertEqual(stored.ran, [2, 3, 6, 2, 3, 6, 2, 3, 6, 2, 3, 6])
    }

    func testVerifyReturnsOneDifferencePerExit() async throws {
        for name in try Vectors.models() {
            let runner = try runner(name)
            let differences = try await runner.verify()
            XCTAssertEqual(differences.count, runner.manifest.exits.count, name)
            XCTAssertLessThan(differences.max() ?? .infinity, 1e-6, name)
        }
    }

    func testVerifyNamesTheDeviatingLayer() async throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let golden = try bundle.readGolden()
        for off in [Float(0.5), .nan] {
            let rows = golden.logits.enumerated().map { row, layers in
                layers.enumerated().map { place, logits in
                    LayerOutput(
                        logits: logits.map { Float($0) + (row == 1 && place == 2 ? off : 0) },
                        lte: golden.lte.map { Float($0[row][place]) })
                }
            }
            let runner = try EarlyExitRunner(bundle: bundle, executor: Stored(rows))
            await assertFails("on this device layer 3 is") { try await runner.verify() }
        }
    }

    func testErrorHasTheUnderlyingErrorForCrashReporters() {
        let cause = CocoaError(.fileReadNoPermission)
        let error = EarlyExitError.failure("layer 1 failed", underlying: cause) as NSError
        XCTAssertEqual(error.localizedDescription, "layer 1 failed")
        XCTAssertEqual(error.domain, "EarlyExit")
        XCTAssertEqual((error.userInfo[NSUnderlyingErrorKey] as? CocoaError)?.code, cause.code)
        XCTAssertNil((EarlyExitError.input("empty") as NSError).userInfo[NSUnderlyingErrorKey])
    }
}

/// Exit layers of a stream, and of a prediction at full depth.
@MainActor
private func exitLayersOnTheMainActor(_ runner: EarlyExitRunner) async throws -> [Int] {
    var layers: [Int] = []
    for try await prediction in try runner.stream("one") { layers.append(prediction.exitLayer) }
    return layers + [try await runner.predict("one", threshold: 1).exitLayer]
}
