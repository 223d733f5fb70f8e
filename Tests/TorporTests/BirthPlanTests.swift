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

@Test func aDaemonIsCutOffFromTheSessionThatItsFirstParentLed() throws {
  let plan = try BirthPlan([kin(10, 0, group: 10, session: 10), kin(11, 10, group: 11, session: 99)])
  #expect(plan.sessionStandIns.map(\.pid) == [99])
  #expect(plan.borrowedIDs == [99])
  #expect(plan.steps.map(\.pid) == [10, 99, 11])
  #expect(plan.steps[0].bornAfter == [99])
  #expect(plan.steps[1].callsSetsid)
  #expect(plan.steps[1].siblings == [11])
}

@Test func anOrphanIsCutOffFromALeaderThatLives() throws {
  // 12 was a grandchild of 11, who leads its session still; 10 has adopted it.
  let plan = try BirthPlan([
    kin(10, 0, group: 10, session: 10), kin(12, 10, group: 11, session: 11), kin(11, 10, group: 11, session: 11),
  ])
  #expect(plan.borrowedIDs.isEmpty)
  #expect(plan.steps.first { $0.pid == 11 }?.siblings == [12])
  #expect(plan.steps.map(\.pid) == [10, 11, 12])
}

@Test func aGroupWithoutItsLeaderFallsApart() throws {
  let plan = try BirthPlan([
    kin(10, 0, group: 10, session: 10), kin(11, 10, group: 90, session: 10), kin(12, 11, group: 90, session: 10),
  ])
  #expect(plan.groupStandIns.map(\.pid) == [90])
  #expect(plan.groups.map(\.pid) == [11, 12])
}

@Test func aSessionThatTwoParentsShareIsPlannedAlthoughItCannotBeMade() {
  #expect(throws: BirthPlan.Obstacle.self) {
    try BirthPlan([
      kin(10, 0, group: 10, session: 10), kin(11, 10, group: 11, session: 99), kin(12, 10, group: 12, session: 12),
      kin(13, 12, group: 13, session: 99),
    ])
  }
}
