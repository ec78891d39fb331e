// Stand-in for the part of SwiftUI that the example app uses: names and signatures are those that Apple publishes. It
// shows nothing. With it, the compiler checks the types of the app on Linux.

@MainActor
public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View {
    public var body: Never { fatalError("a view of the system has no body") }
}

extension Optional: View where Wrapped: View {
    public var body: Never { fatalError("a view of the system has no body") }
}

@resultBuilder
public enum ViewBuilder {
    public static func buildExpression<Content: View>(_ content: Content) -> Content { content }
    public static func buildBlock<each Content: View>(_ content: repeat each Content) -> Shown { Shown() }
    public static func buildBlock<Content: View>(_ content: Content) -> Content { content }
    public static func buildIf<Content: View>(_ content: Content?) -> Content? { content }
    public static func buildEither(first content: some View) -> Shown { Shown() }
    public static func buildEither(second content: some View) -> Shown { Shown() }
}

/// Any view of the system.
public struct Shown: View {
    nonisolated init() {}
    public var body: Never { fatalError("a view of the system has no body") }
}

public struct Text: View {
    public init(_ content: some StringProtocol) {}
    public var body: Never { fatalError("a view of the system has no body") }
}

public struct TextField: View {
    public init(_ title: some StringProtocol, text: Binding<String>) {}
    public var body: Never { fatalError("a view of the system has no body") }
}

public struct ProgressView: View {
    public init(_ title: some StringProtocol, value: (some BinaryFloatingPoint)?, total: Double = 1) {}
    public var body: Never { fatalError("a view of the system has no body") }
}

public struct VStack<Content: View>: View {
    public init(
        alignment: HorizontalAlignment = .center, spacing: Double? = nil, @ViewBuilder content: () -> Content
    ) {}
    public var body: Never { fatalError("a view of the system has no body") }
}

public enum HorizontalAlignment: Sendable { case leading, center, trailing }
public enum Font: Sendable { case title, caption }
public enum Color: Sendable { case red }
public struct RoundedBorderTextFieldStyle: Sendable {}

extension View {
    public func font(_ font: Font?) -> some View { Shown() }
    public func foregroundStyle(_ color: Color) -> some View { Shown() }
    public func padding() -> some View { Shown() }
    public func textFieldStyle(_ style: TextFieldStyleName) -> some View { Shown() }
    public func task(_ action: @escaping @Sendable @MainActor () async -> Void) -> some View { Shown() }
    public func onChange<Value: Equatable>(of value: Value, _ action: @escaping () -> Void) -> some View { Shown() }
}

public enum TextFieldStyleName: Sendable { case roundedBorder }

@propertyWrapper
public struct State<Value> {
    public init(wrappedValue: Value) { self.wrappedValue = wrappedValue }
    public var wrappedValue: Value
    public var projectedValue: Binding<Value> { Binding() }
}

public struct Binding<Value> {}

@propertyWrapper
public struct Environment<Value> {
    private let path: KeyPath<EnvironmentValues, Value>
    public init(_ path: KeyPath<EnvironmentValues, Value>) { self.path = path }
    public var wrappedValue: Value { EnvironmentValues()[keyPath: path] }
}

public struct EnvironmentValues {
    public var scenePhase: ScenePhase { .active }
}

public enum ScenePhase: Equatable, Sendable { case background, inactive, active }

@MainActor
public protocol Scene {}

public struct WindowGroup<Content: View>: Scene {
    public init(@ViewBuilder content: () -> Content) {}
}

@MainActor
public protocol App {
    associatedtype Body: Scene
    init()
    var body: Body { get }
}

extension App {
    public static func main() { _ = Self().body }
}
