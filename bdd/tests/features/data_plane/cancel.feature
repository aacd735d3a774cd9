Feature: Canceling a task
  Once the cancel is confirmed, not one more word comes, and the task's place is free.

  Scenario: Canceling a running task
    Given a server
    And the long task "story" is running
    When I cancel "story"
    Then it is done
    And the answer carries a correlation id
    And the stream of "story" ends because of "canceled"
    And the stream of "story" has fewer than 1900 tokens

  @faults
  Scenario: No token comes after the cancel is confirmed, although a step is under way
    Given a server
    And the engine needs 250 ms for every step
    And the long task "story" is running
    When I cancel "story"
    Then it is done
    And no token of "story" arrived after the cancel was confirmed
    And the stream of "story" ends because of "canceled"

  Scenario: Who opens the stream after the cancel sees its end, and no token either
    Given a server
    And the long task "story" is running
    When I cancel "story"
    And a second reader reads the stream of "story" to its end
    Then the stream of "story" ends because of "canceled"
    And the second reader of "story" saw no token and the same end

  Scenario: A task that is canceled while it waits never writes a word
    Given a server
    And 1 task may run and 4 may wait
    And the long task "hog" is running
    When I send the task "story"
    And I cancel "story"
    Then it is done
    When I read the stream of "story" to its end
    Then the stream of "story" ends because of "canceled"
    And the stream of "story" has 0 tokens

  @faults
  Scenario: The place of a task that is canceled while it waits is free at once, although a step is under way
    Given a server
    And the engine needs 2000 ms for every step
    And 1 task may run and 1 may wait
    And the long task "hog" is running
    When I send the task "story"
    And I send the task "late"
    Then it is refused as "ADMISSION_REJECT"
    When I cancel "story"
    And I send the task "next"
    Then it is accepted
    And the answer's "queue_position" is 0

  @faults
  Scenario: Nobody is dropped while a canceled task's place is there
    Given a server
    And the engine needs 2000 ms for every step
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the long task "hog" is running
    When I send the task "patient"
    And I send the task "story"
    And I cancel "story"
    And I send the task "next"
    Then it is accepted
    And the metrics count 0 "admission_backpressure_events_total" by "policy" "drop-lru"

  Scenario: The next task takes the place of a canceled one
    Given a server
    And 1 task may run and 4 may wait
    And the long task "hog" is running
    When I send the task "story"
    And I cancel "hog"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: Canceling twice is canceling once
    Given a server
    And the long task "story" is running
    When I cancel "story"
    And I cancel "story"
    Then it is done
    And the metrics count 1 canceled task

  Scenario: Canceling a task that has finished does no harm
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    And I cancel "story"
    Then it is done
    And the metrics count 0 canceled tasks

  Scenario: A task that nobody sent cannot be canceled
    Given a server
    When I send to "/v1/tasks/00000000-0000-4000-8000-000000000000/cancel" the text
      """
      """
    Then it is refused as "NOT_FOUND"

  Scenario: A task may ask to be canceled when its reader goes away
    Given a server
    And the setting disconnect_grace_ms is "50"
    When I send the long task "story" with
      | on_disconnect | "cancel" |
    And I open the stream of "story"
    And 2 tokens of "story" have arrived
    And the reader of "story" goes away
    Then the metrics count 1 canceled task
