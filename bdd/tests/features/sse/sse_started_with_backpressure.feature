Feature: Waiting with open eyes
  Who waits knows its place from the first moment; who cannot even wait is told when to come back.

  Background:
    Given a server
    And 1 task may run and 3 may wait
    And a full queue turns newcomers away
    And the long task "hog" is running

  Scenario: The start is there while the task still waits
    When I send the task "first"
    And I open the stream of "first"
    Then the started event of "first" comes while it waits
    And the started event of "first" tells "queue_position, predicted_start_ms"
    And the stream of "first" has 0 tokens

  Scenario: Who came later waits further back
    When I send the task "first"
    And I send the task "second"
    And I send the task "third"
    And I open the streams of "first", "second" and "third"
    Then "first", "second" and "third" wait one behind the other
    And the started event of "third" says the same as the answer to it

  Scenario: The queue is full, and the streams of those who wait are none the worse
    When I send the task "first"
    And I send the task "second"
    And I send the task "third"
    And I send the task "fourth"
    Then it is refused as "ADMISSION_REJECT"
    And I am told to retry after at least 1 second
    And the answer carries a correlation id
    When I open the stream of "first"
    Then the started event of "first" comes while it waits
    When I cancel "hog"
    Then the stream of "first" ends properly
