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

/// Who is born when, and from whom, so that every process ends up in its session and group.
///
/// A session is inherited at birth and left only by setsid(2), for good. So a child that belongs to the session its
/// parent came from is born before the parent's setsid, all others after it. One that belongs to neither was left behind
/// in a session when its first parent died, and has been adopted since: it is born of a sibling who leads that session,
/// with `CLONE_PARENT`. Process groups can be joined later, as long as there is one. Where a leader has ended, a stand-in
/// under its ID takes its place until all others are there.
public struct BirthPlan: Sendable {
  public struct Step: Sendable {
    public var pid: ProcessID
    public var bornBefore: [ProcessID] = []
    public var callsSetsid = false
    public var bornAfter: [ProcessID] = []
    /// Born of this one as children of its own parent.
    public var siblings: [ProcessID] = []
  }

  /// A leader that has ended.
  public struct StandIn: Sendable {
    public var pid: ProcessID
    /// Its parent for as long as it is there.
    public var parent: ProcessID
  }

  /// One for each process and each stand-in of a session's leader, nobody before the one it is born of.
  public private(set) var steps: [Step] = []
  /// Those who lead sessions; they are born in a step like everybody else.
  public private(set) var sessionStandIns: [StandIn] = []
  /// Those who lead groups only; they are born of a member when all steps have been taken.
  public private(set) var groupStandIns: [StandIn] = []
  /// Process groups to be joined: leaders first. Those that are led from outside are left out.
  public private(set) var groups: [(pid: ProcessID, group: ProcessID)] = []

  /// IDs that must be free although no process of the job has them.
  public var borrowedIDs: [ProcessID] { (sessionStandIns + groupStandIns).map(\.pid) }

  /// Why there is no plan.
  public struct Obstacle: Error, Sendable {
    public var pid: ProcessID
    public var why: String
  }

  /// - Parameter family: parents before their children.
  public init(_ family: [Kin]) throws(Obstacle) {
    guard let root = family.first else { return }
    // Nobody in the job leads the root's session when this is not its own: it is the one around the job.
    let around: ProcessID = root.session == root.pid ? 0 : root.session
    var relations = Relations(family)
    try plan(root, bornInto: around, &relations)
    try planGroups(family, root, relations)
  }

  /// Plans the births of everybody who is born of `kin`, and what they do in turn.
  private mutating func plan(
    _ kin: Kin, bornInto inherited: ProcessID, _ relations: inout Relations
  ) throws(Obstacle) {
    guard kin.session == kin.pid || kin.session == inherited else { throw Self.leftBehind(kin) }
    var step = Step(pid: kin.pid)
    step.callsSetsid = kin.session == kin.pid
    step.siblings = relations.siblings[kin.pid] ?? []
    var standIns: [Kin] = []
    for child in relations.children[kin.pid] ?? [] {
      let needed = relations.neededSession(child, above: [kin.session, inherited])
      if step.callsSetsid, needed == inherited, needed != kin.pid {
        step.bornBefore.append(child.pid)
      } else if needed == nil || needed == kin.session {
        step.bornAfter.append(child.pid)
      } else {
        // Only a sibling who leads that session can have borne it.
        let session = child.session
        if let leader = relations.byPID[session] {
          guard leader.parent == kin.pid else { throw Self.leftBehind(child) }
        } else if relations.siblings[session] == nil {
          standIns.append(Kin(pid: session, parent: kin.pid, group: session, session: session))
        } else if !standIns.contains(where: { $0.pid == session }) {
          throw Self.leftBehind(child)
        }
        relations.siblings[session, default: []].append(child.pid)
      }
    }
    step.bornAfter += standIns.map(\.pid)
    sessionStandIns += standIns.map { StandIn(pid: $0.pid, parent: kin.pid) }
    steps.append(step)
    for pid in step.bornBefore { try plan(pid, bornInto: inherited, &relations) }
    for standIn in standIns { try plan(standIn, bornInto: kin.session, &relations) }
    for pid in step.bornAfter { try plan(pid, bornInto: kin.session, &relations) }
    for pid in step.siblings { try plan(pid, bornInto: kin.pid, &relations) }
  }

  private mutating func plan(
    _ pid: ProcessID, bornInto session: ProcessID, _ relations: inout Relations
  ) throws(Obstacle) {
    if let kin = relations.byPID[pid] { try plan(kin, bornInto: session, &relations) }
  }

  private static func leftBehind(_ kin: Kin) -> Obstacle {
    Obstacle(pid: kin.pid, why: "it was left behind in session \(kin.session) and adopted by a process that has nothing to do with it")
  }

  private mutating func planGroups(_ family: [Kin], _ root: Kin, _ relations: Relations) throws(Obstacle) {
    for kin in family where kin.group == kin.pid && kin.session != kin.pid { groups.append((kin.pid, kin.pid)) }
    var known = Set(sessionStandIns.map(\.pid))
    for kin in family where kin.group != kin.pid {
      let isLedFromOutside = kin.group == root.group && root.group != root.pid
      if relations.byPID[kin.group] != nil || known.contains(kin.group) {
        groups.append((kin.pid, kin.group))
      } else if !isLedFromOutside {
        known.insert(kin.group)
        groupStandIns.append(StandIn(pid: kin.group, parent: kin.pid))
        groups.append((kin.pid, kin.group))
      }
    }
  }
}

/// Who belongs to whom.
private struct Relations {
  let byPID: [ProcessID: Kin]
  let children: [ProcessID: [Kin]]
  /// For the leader of a session, living or not: who is born of it as a child of its parent.
  var siblings: [ProcessID: [ProcessID]] = [:]

  init(_ family: [Kin]) {
    byPID = Dictionary(family.map { ($0.pid, $0) }, uniquingKeysWith: { first, _ in first })
    children = Dictionary(grouping: family.dropFirst(), by: \.parent)
  }

  /// The session a process must be born into, for itself or for children it has had before its own setsid; nil for any.
  ///
  /// - Parameter above: the sessions that it can have come from with its parent.
  func neededSession(_ kin: Kin, above: Set<ProcessID>) -> ProcessID? {
    if kin.session != kin.pid { return kin.session }
    for child in children[kin.pid] ?? [] {
      if let needed = neededSession(child, above: above), needed != kin.pid, above.contains(needed) { return needed }
    }
    return nil
  }
}
