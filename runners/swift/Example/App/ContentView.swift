import EarlyExit
import SwiftUI

struct ContentView: View {
    @State private var classifier = Classifier()
    @State private var text = ""
    @Environment(\.scenePhase) private var phase

    var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            switch classifier.state {
            case .loading(let fraction):
                ProgressView("Loading the model", value: fraction)
            case .failed(let message):
                Text(message).foregroundStyle(.red)
            case .ready:
                TextField("turn the kitchen lights off", text: $text)
                    .textFieldStyle(.roundedBorder)
                if let prediction = classifier.prediction {
                    Text(title(prediction)).font(.title)
                    Text(details(prediction)).font(.caption)
                }
            }
        }
        .padding()
        .task { await classifier.load() }
        .onChange(of: text) { classifier.predict(text) }
        .onChange(of: phase) { if phase == .background { classifier.unload() } }
    }

    private func title(_ prediction: Prediction) -> String {
        if let labels = prediction.labels { return labels.isEmpty ? "no label" : labels.joined(separator: ", ") }
        return prediction.label ?? String(format: "%.2f", prediction.value ?? 0)
    }

    private func details(_ prediction: Prediction) -> String {
        let latency = String(format: "%.1f", prediction.latencyMs)
        return "layer \(prediction.exitLayer), certainty \(prediction.certainty), \(latency) ms"
    }
}
