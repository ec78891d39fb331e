import Foundation
import XCTest

@testable import EarlyExit

/// Behaviour of the runner that the test vectors do not cover.
final class RunnerTests: XCTestCase {
    func testATextThatCannotBeAnsweredIsRefused() throws {
        let runner = try runner("confidence")
        assertFails(try runner.predict("  \n"), "the text is empty")
        assertFails(try runner.stream("  \n"), "the text is empty")
        assertFails(try runner.predict("one", "two"), "this model expects single texts (custom), but was given a pair")
        assertFails(try self.runner("pairs").predict("one"), "this model expects pairs of texts")
        assertFails(try runner.predict("one", threshold: 1.5), "threshold 1.5 is out of range")
        assertFails(try runner.predict("one", deadlineMs: 0), "deadlineMs is 0.0")
    }

    func testABatchIsRefusedBeforeAnyOfItRuns() throws {
        let bundle = try ModelBundle(at: bundleFolder("confidence"))
        let stored = try Stored(bundle.readGolden())
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored)
        assertFails(try runner.predictBatch([String]()), "the batch is empty")
        assertFails(try runner.predictBatch(["one", " "]), "text 1 is empty")
        assertFails(try runner.predictBatch([("one", "two")]), "was given a pair")
        XCTAssertEqual(stored.ran, [])
    }

    func testOnlyTheSegmentsUpToTheAnswerRun() throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        let answer = try EarlyExitRunner(bundle: bundle, executor: stored).predict("one", threshold: 0)
        XCTAssertEqual(answer.exitLayer, 2)
        XCTAssertEqual(stored.ran, [2])
    }

    func testADeadlineThatIsOverLeavesEveryTextItsFirstExit() throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let runner = try EarlyExitRunner(bundle: bundle, executor: Stored(bundle.readGolden()))
        let late = try runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 1e-6)
        XCTAssertEqual(late.map(\.exitLayer), [2, 2, 2])
        XCTAssertEqual(late.map(\.stoppedBy), [.deadline, .deadline, .deadline])
        XCTAssertEqual(late.map(\.late), [true, true, true])
        let early = try runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 1e7)
        XCTAssertEqual(early.map(\.exitLayer), [6, 6, 6])
        XCTAssertEqual(early.map(\.stoppedBy), [.lastLayer, .lastLayer, .lastLayer])
        XCTAssertEqual(early.map(\.late), [false, false, false])
    }

    func testTextsOfABatchShareWhatIsLeftOfTheirDeadline() throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        let runner = try EarlyExitRunner(bundle: bundle, executor: stored) { stored.seconds }
        // Layer 3 takes 10 ms; layers 4 to 6 are expected to take 3 x 20 ms. The first text has 53 ms, the second 140 /
        // 2 ms, the third 120 ms: 20 ms to layer 3, and 60 ms more.
        let answers = try runner.predictBatch(["one", "two", "three"], threshold: 1, deadlineMs: 160)
        XCTAssertEqual(answers.map(\.exitLayer), [3, 3, 6])
        for (answer, milliseconds) in zip(answers, [20, 40, 70]) {
            XCTAssertEqual(answer.latencyMs, Double(milliseconds), accuracy: 1e-6)
        }
    }

    func testALongTextIsReadUntilTheDeadline() throws {
        let runner = try runner("confidence")
        let blanks = "one" + String(repeating: " ", count: 200_000) + "two"
        XCTAssertFalse(try runner.predict(blanks).truncated)
        XCTAssertTrue(try runner.predict(blanks, deadlineMs: 1e-3).truncated)
    }

    func testWarmUpRunsEverySegmentTwiceAtEveryLength() throws {
        let bundle = try ModelBundle(at: bundleFolder("fewer_exits"))
        let stored = try Stored(bundle.readGolden())
        try EarlyExitRunner(bundle: bundle, executor: stored).warmUp()
        XCTAssertEqual(stored.inputs.map(\.count).sorted(), [8, 8, 16, 16])
        XCTAssertTrue(stored.inputs.allSatisfy { $0.attentionMask.allSatisfy { $0 == 1 } })
        XCTAssertEqual(stored.ran, [2, 3, 6, 2, 3, 6, 2, 3, 6, 2, 3, 6])
    }

    func testVerifyGivesOneDifferencePerExit() throws {
        for name in try Vectors.models() {
            let runner = try runner(name)
            let differences = try runner.verify()
            XCTAssertEqual(differences.count, runner.manifest.exits.count, name)
            XCTAssertLessThan(differences.max() ?? .infinity, 1e-6, name)
        }
    }

    func testVerifyNamesTheLayerThatIsOff() throws {
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
            assertFails(try runner.verify(), "on this device layer 3 is")
        }
    }
}
