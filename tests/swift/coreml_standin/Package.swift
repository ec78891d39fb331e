// swift-tools-version:6.0
import PackageDescription

// Tests of the CoreML half of the Swift package on Linux, with stand-ins for Apple's modules CoreML, ObjectiveC and
// SwiftUI.
//
//     swift test --package-path tests/swift/coreml_standin
/// The library Observation of Swift 6.0 on Linux refers to a symbol that no library exports, and never calls it.
let observation = LinkerSetting.unsafeFlags(["-Xlinker", "--allow-shlib-undefined"], .when(platforms: [.linux]))

let package = Package(
    name: "CoreMLStandin",
    platforms: [.iOS(.v16), .macOS(.v13)],
    targets: [
        .target(name: "ObjectiveC"),
        .target(name: "CoreML", dependencies: ["ObjectiveC"]),
        .target(name: "SwiftUI"),
        .target(name: "EarlyExit", dependencies: ["CoreML", "ObjectiveC"]),
        .executableTarget(name: "ExampleApp", dependencies: ["EarlyExit", "SwiftUI"], linkerSettings: [observation]),
        .testTarget(name: "CoreMLTests", dependencies: ["CoreML", "EarlyExit", "ObjectiveC"]),
        .testTarget(
            name: "ExampleTests", dependencies: ["CoreML", "EarlyExit", "ExampleApp"], linkerSettings: [observation]),
    ],
    swiftLanguageModes: [.v6]
)
