import Foundation

/// Stand-in for Objective-C's autorelease pools: objects that a framework autoreleases stay alive until the innermost
/// pool of the thread ends. Without a pool they stay alive as long as the thread, here forever.
public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result {
    let outer = Pools.innermost
    let pool = Pool()
    Pools.innermost = pool
    Pools.opened.increase()
    defer { Pools.innermost = outer }
    return try body()
}

/// Autoreleases an object, as CoreML does with the outputs of a synchronous prediction.
public func autorelease(_ object: AnyObject) {
    (Pools.innermost ?? Pools.outermost).add(object)
}

/// Pools of all threads.
public enum Pools {
    /// Number of pools that were opened.
    public static let opened = Counter()

    static let outermost = Pool()
    private static let key = "autorelease pool"

    static var innermost: Pool? {
        get { Thread.current.threadDictionary[key] as? Pool }
        set { Thread.current.threadDictionary[key] = newValue }
    }
}

final class Pool: @unchecked Sendable {
    private let lock = NSLock()
    private var objects: [AnyObject] = []

    func add(_ object: AnyObject) {
        lock.lock()
        defer { lock.unlock() }
        objects.append(object)
    }
}

/// Thread-safe counter.
public final class Counter: @unchecked Sendable {
    private let lock = NSLock()
    private var count = 0

    public init() {}

    public var value: Int {
        lock.lock()
        defer { lock.unlock() }
        return count
    }

    public func increase(by number: Int = 1) {
        lock.lock()
        defer { lock.unlock() }
        count += number
    }
}
