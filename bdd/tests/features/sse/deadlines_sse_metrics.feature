Feature: Deadlines
  A deadline that cannot be kept is refused at once; one that is missed is an error, never an end.

  Scenario: The stream tells how likely it is to be in time
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the on_time_probability of "story" is between 0 and 1

  Scenario: Plenty of time is plenty of hope
    Given a server
    When I send the task "story" with
      | deadline_ms | 600000 |
    And I read the stream of "story" to its end
    Then the on_time_probability of "story" is between 0.5 and 1

  Scenario Outline: A deadline of <deadline> ms has passed already
    Given a server
    When I send the task "story" with
      | deadline_ms | <deadline> |
    Then it is refused as "DEADLINE_UNMET"
    And the refusal names the engine "cpu"
    And the answer carries a correlation id

    Examples:
      | deadline |
      | 0        |
      | -1       |

  Scenario: A deadline that the work ahead makes impossible is refused
    Given a server
    And 1 task may run and 8 may wait
    And a quick task has been done
    And the long task "hog" is running
    When I send the task "hasty" with
      | deadline_ms | 40  |
      | max_tokens  | 400 |
      | ctx         | 512 |
    Then it is refused as "DEADLINE_UNMET"
    And the metrics count 1 "tasks_rejected_total" by "reason" "DEADLINE_UNMET"

  Scenario: Nothing is read of a prompt whose deadline is refused
    Given a server
    And 1 task may run and 8 may wait
    And a quick task has been done
    And the long task "hog" is running
    When I send the task "hasty" with a prompt of 200 words with
      | deadline_ms | 40  |
      | max_tokens  | 400 |
    Then it is refused as "DEADLINE_UNMET"
    When I cancel "hog"
    And I read the stream of "hog" to its end
    And I send the task "patient" with a prompt of 200 words
    And I read the stream of "patient" to its end
    Then the metrics count 3 accepted tasks
    And the metrics show "tasks_started_total" at 3
    And nothing of the prompt of "patient" had been read before
    When I send the task "once more" with a prompt of 200 words
    And I read the stream of "once more" to its end
    Then "patient" was cold and "once more" was warm

  Scenario: A deadline that passes while the task waits
    Given a server
    And the setting on_time_probability_floor is "0"
    And 1 task may run and 8 may wait
    And the long task "hog" is running
    When I send the task "late" with
      | deadline_ms | 150 |
    Then it is accepted
    When I open the stream of "late"
    Then the stream of "late" ends with the error "DEADLINE_UNMET"
    And the stream of "late" has 0 tokens

  Scenario: A deadline that passes while the task is written
    Given a server
    And the setting on_time_probability_floor is "0"
    When I send the long task "slow" with
      | deadline_ms | 500 |
    And I open the stream of "slow"
    Then the stream of "slow" ends with the error "DEADLINE_UNMET"
    And the stream of "slow" has at least 1 token
    And the stream of "slow" has no end event
