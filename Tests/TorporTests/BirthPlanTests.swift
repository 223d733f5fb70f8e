import Testing

@testable import Torpor

private func kin(_ pid: Int32, _ parent: Int32, group: Int32, session: Int32) -> Kin {
  Kin(pid: pid, parent: parent, group: group, session: session)
}

@Test func aChildThatStayedBehindIsBornIntoTheNewSession() throws {
  // 10 leads a session; 11 became a leader after it had 12, and has 13 in its own.
  let plan = try BirthPlan([
    kin(10, 0, group: 10, session: 10), kin(11, 10, group: 11, session: 11), kin(12, 11, group: 10, session: 10),
    kin(13, 11, group: 11, session: 11),
  ])
  let step = try #require(plan.steps.first { $0.pid == 11 })
  #expect(step.bornBefore == [12])
  #expect(step.callsSetsid)
  #expect(step.bornAfter == [13])
}

@Test func aGroupIsJoinedBeforeItsLeaderHasMadeIt() throws {
  let plan = try BirthPlan([
    kin(10, 0, group: 10, session: 10), kin(11, 10, group: 12, session: 10), kin(12, 10, group: 12, session: 10),
  ])
  #expect(plan.groups.map(\.pid) == [12, 11])
}

@Test func aJobOfAShellsSessionCannotBePlanned() throws {
  let plan = try BirthPlan([kin(10, 0, group: 10, session: 5), kin(11, 10, group: 10, session: 5)])
  #expect(plan.steps.allSatisfy { !$0.callsSetsid })
}

@Test func aSessionWithoutItsLeaderIsPlannedAllTheSame() {
  #expect(throws: BirthPlan.Obstacle.self) {
    try BirthPlan([kin(10, 0, group: 10, session: 10), kin(11, 10, group: 11, session: 99)])
  }
}
