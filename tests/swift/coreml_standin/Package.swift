// swift-tools-version:6.0
import PackageDescription

// Tests of the CoreML half of the Swift package on Linux, with stand-ins for Apple's modules CoreML, ObjectiveC and
// SwiftUI.
//
//     swift test --package-path tests/swift/coreml_standin
let package = Package(
    name: "CoreMLStandin",
    platforms: [.iOS(.v16), .macOS(.v13)],
    targets: [
        .target(name: "ObjectiveC"),
        .target(name: "CoreML", dependencies: ["ObjectiveC"]),
        .target(name: "EarlyExit", dependencies: ["CoreML", "ObjectiveC"]),
        .testTarget(name: "CoreMLTests", dependencies: ["CoreML", "EarlyExit", "ObjectiveC"]),
    ],
    swiftLanguageModes: [.v6]
)
