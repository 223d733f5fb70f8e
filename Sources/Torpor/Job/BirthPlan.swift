import Linux

/// Where a process stands among the others: its parent, process group and session.
public struct Kin: Sendable {
  public var pid: ProcessID
  /// 0 for the root.
  public var parent: ProcessID
  public var group: ProcessID
  public var session: ProcessID

  public init(pid: ProcessID, parent: ProcessID, group: ProcessID, session: ProcessID) {
    self.pid = pid
    self.parent = parent
    self.group = group
    self.session = session
  }
}

/// Who is born when, so that every process ends up in its session.
///
/// A session is inherited at birth and left only by setsid(2), for good. So a child that belongs to the session its
/// parent came from is born before the parent's setsid, all others after it. Process groups can be joined later.
public struct BirthPlan: Sendable {
  public struct Step: Sendable {
    public var pid: ProcessID
    public var bornBefore: [ProcessID] = []
    public var callsSetsid = false
    public var bornAfter: [ProcessID] = []
  }

  /// One for each process, parents before their children.
  public private(set) var steps: [Step] = []
  /// Process groups to be joined: leaders first. Those that are led from outside are left out.
  public private(set) var groups: [(pid: ProcessID, group: ProcessID)] = []

  /// Why there is no plan.
  public struct Obstacle: Error, Sendable {
    public var pid: ProcessID
    public var why: String
  }

  /// - Parameter family: parents before their children.
  public init(_ family: [Kin]) throws(Obstacle) {
    guard let root = family.first else { return }
    let byPID = Dictionary(family.map { ($0.pid, $0) }, uniquingKeysWith: { first, _ in first })
    let children = Dictionary(grouping: family.dropFirst(), by: \.parent)
    // Nobody in the job leads the root's session when this is not its own: it is the one around the job.
    let around: ProcessID = root.session == root.pid ? 0 : root.session

    var birthSession: [ProcessID: ProcessID] = [root.pid: around]
    for kin in family {
      let inherited = birthSession[kin.pid] ?? around
      var step = Step(pid: kin.pid)
      step.callsSetsid = kin.session == kin.pid
      guard step.callsSetsid || kin.session == inherited else {
        throw Obstacle(pid: kin.pid, why: "its session \(kin.session) was left behind by a leader that has ended")
      }
      for child in children[kin.pid] ?? [] {
        let needed = try Self.neededSession(child, children)
        let bornBefore = step.callsSetsid && needed == inherited && needed != kin.pid
        if bornBefore { step.bornBefore.append(child.pid) } else { step.bornAfter.append(child.pid) }
        birthSession[child.pid] = bornBefore ? inherited : kin.session
      }
      steps.append(step)
    }
    try planGroups(family, root, byPID)
  }

  /// The session a process must be born into, for itself or for children it has had before its own setsid; nil for any.
  private static func neededSession(
    _ kin: Kin, _ children: [ProcessID: [Kin]]
  ) throws(Obstacle) -> ProcessID? {
    if kin.session != kin.pid { return kin.session }
    for child in children[kin.pid] ?? [] {
      if let needed = try neededSession(child, children), needed != kin.pid { return needed }
    }
    return nil
  }

  private mutating func planGroups(_ family: [Kin], _ root: Kin, _ byPID: [ProcessID: Kin]) throws(Obstacle) {
    for kin in family where kin.group == kin.pid && kin.session != kin.pid { groups.append((kin.pid, kin.pid)) }
    for kin in family where kin.group != kin.pid {
      if byPID[kin.group] != nil {
        groups.append((kin.pid, kin.group))
      } else if kin.group != root.group || root.group == root.pid {
        throw Obstacle(pid: kin.pid, why: "its process group \(kin.group) was left behind by a leader that has ended")
      }
    }
  }
}
