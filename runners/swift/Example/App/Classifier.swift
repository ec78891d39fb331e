import EarlyExit
import Foundation
import Observation

/// Model of the example app: loads the bundle once, and predicts the text while the user types.
@MainActor
@Observable
final class Classifier {
    enum State: Equatable {
        case loading(fraction: Double)
        case ready
        case failed(String)
    }

    private(set) var state = State.loading(fraction: 0)
    private(set) var prediction: Prediction?
    private var runner: EarlyExitRunner?
    private var task: Task<Void, Never>?

    /// Loads the bundle that was added to the app as a folder. The first launch compiles it.
    func load(_ folder: URL? = Bundle.main.url(forResource: "bundle", withExtension: nil)) async {
        guard let folder else {
            state = .failed("The app contains no folder \"bundle\": see README.md of this example")
            return
        }
        do {
            // Predicts on the CPU at once. The Neural Engine takes over when its models are ready.
            runner = try await EarlyExitRunner.load(folder, options: LoadOptions(lazy: true, startOnCPU: true)) { report in
                Task { @MainActor in self.show(report) }
            }
            state = .ready
        } catch {
            state = .failed(error.localizedDescription)
        }
    }

    /// Predicts a text. Cancels the prediction of the previous one, whose layers would run in vain.
    func predict(_ text: String) {
        task?.cancel()
        task = Task {
            do {
                prediction = try await runner?.predict(text, deadlineMs: 50)
            } catch is CancellationError {
                // The next text replaces this one.
            } catch let error as EarlyExitError where error.kind == .input {
                prediction = nil  // no text
            } catch {
                state = .failed(error.localizedDescription)
            }
        }
    }

    /// Frees the models while the app is in the background.
    func unload() {
        runner?.unload()
    }

    /// Returns when the last prediction is shown.
    func wait() async {
        await task?.value
    }

    private func show(_ report: LoadProgress) {
        if case .loading = state { state = .loading(fraction: report.fraction) }
    }
}
