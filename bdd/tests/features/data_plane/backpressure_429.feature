Feature: More work than there is room for
  Who cannot be served is told at once, and told when it is worth coming back.

  Background:
    Given a server
    And 1 task may run and 2 may wait
    And a full queue turns newcomers away

  Scenario: A full queue tells newcomers when to come back
    Given the queue is full
    When I send the task "late"
    Then it is refused as "ADMISSION_REJECT"
    And I am told to retry after at least 1 second
    And the refusal says that a retry is worthwhile
    And the refusal names the policy "reject"
    And the refusal names the engine "cpu"
    And the answer carries a correlation id

  Scenario: Who comes back when there is room is let in
    Given the queue is full
    When I send the task "late"
    Then it is refused as "ADMISSION_REJECT"
    When I cancel everything
    And I send the task "back"
    Then it is accepted
    When I read the stream of "back" to its end
    Then the stream of "back" ends properly

  Scenario: The advice follows the work ahead
    Given a quick task has been done
    When I fill the queue with tasks of 10 tokens and send one more
    And I remember the advice as "little work"
    And I cancel everything
    And I fill the queue with tasks of 1900 tokens and send one more
    And I remember the advice as "much work"
    Then the advice for "much work" is longer than that for "little work"

  Scenario: A refused task leaves nothing behind
    Given the queue is full
    When I send the task "late"
    And I open the stream of "late"
    Then it is refused as "NOT_FOUND"

  Scenario: Those who wait are not disturbed by those who are refused
    Given the queue is full
    When I send 20 more tasks
    And I cancel the task that runs
    Then the tasks that waited get their turn
