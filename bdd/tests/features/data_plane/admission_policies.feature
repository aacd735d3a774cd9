Feature: What a full queue does
  One policy turns newcomers away; the other makes room by dropping who matters least. Both say so.

  Scenario: Turning newcomers away is counted as such
    Given a server
    And 1 task may run and 2 may wait
    And a full queue turns newcomers away
    And the queue is full
    When I send the task "late"
    Then it is refused as "ADMISSION_REJECT"
    And the metrics count 1 "admission_backpressure_events_total" by "policy" "reject"
    And the metrics count 1 "tasks_rejected_total" by "reason" "ADMISSION_REJECT"

  Scenario: Making room is counted as such
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the queue is full
    When I send the task "newcomer"
    Then it is accepted
    And the metrics count 1 "admission_backpressure_events_total" by "policy" "drop-lru"
    And the metrics count 1 "tasks_rejected_total" by "reason" "QUEUE_FULL_DROP_LRU"

  Scenario: Who was dropped is told so when it asks for its stream
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the queue is full
    When I send the task "newcomer"
    And I wait until the log says that "waiting 1" has ended
    And I open the stream of the task that waited longest
    Then it is refused as "QUEUE_FULL_DROP_LRU"
    And I am told to retry after at least 1 second

  Scenario: Who is dropped while reading is told so on the stream
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the queue is full
    When somebody reads the stream of the task that waits longest
    And I send the task "newcomer"
    Then the reader of the task that waited longest is told "QUEUE_FULL_DROP_LRU"

  Scenario: Batch work is dropped before interactive work
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the long task "hog" is running
    When I send the task "person"
    And I send the task "machine" with
      | priority | "batch" |
    And I send the task "newcomer"
    Then it is accepted
    When I wait until the log says that "machine" has ended
    And I open the stream of "machine"
    Then it is refused as "QUEUE_FULL_DROP_LRU"

  Scenario: Of the machines it is the one that has waited longest, and no person, though one came before it
    Given a server
    And 1 task may run and 3 may wait
    And a full queue drops who matters least
    And the long task "hog" is running
    When I send the task "person"
    And I send the task "machine" with
      | priority | "batch" |
    And I send the task "second machine" with
      | priority | "batch" |
    And I send the task "newcomer" with
      | priority | "batch" |
    Then it is accepted
    When I wait until the log says that "machine" has ended
    And I open the stream of "machine"
    Then it is refused as "QUEUE_FULL_DROP_LRU"
    When I cancel "hog"
    And I read the stream of "hog" to its end
    And I read the stream of "person" to its end
    And I read the stream of "second machine" to its end
    And I read the stream of "newcomer" to its end
    Then the stream of "hog" ends because of "canceled"
    And the stream of "person" ends properly
    And the stream of "second machine" ends properly
    And the stream of "newcomer" ends properly
    And the metrics count 1 "admission_backpressure_events_total" by "policy" "drop-lru"
    And the metrics count 1 "tasks_rejected_total" by "reason" "QUEUE_FULL_DROP_LRU"

  Scenario: Who has left the queue makes room, and nobody is dropped for it
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the queue is full
    When I cancel "waiting 1"
    And I send the task "newcomer"
    Then it is accepted
    When I cancel the task that runs
    And I read the stream of "waiting 2" to its end
    And I read the stream of "newcomer" to its end
    Then the stream of "waiting 2" ends properly
    And the stream of "newcomer" ends properly
    And the metrics count 0 "admission_backpressure_events_total" by "policy" "drop-lru"

  Scenario: Each newcomer drops the one that has waited longest then
    Given a server
    And 1 task may run and 3 may wait
    And a full queue drops who matters least
    And the queue is full
    When I send the task "newcomer"
    And I send the task "second newcomer"
    And I wait until the log says that "waiting 1" has ended
    And I wait until the log says that "waiting 2" has ended
    And I cancel the task that runs
    And I read the stream of "waiting 3" to its end
    And I read the stream of "newcomer" to its end
    And I read the stream of "second newcomer" to its end
    Then the stream of "waiting 3" ends properly
    And the stream of "newcomer" ends properly
    And the stream of "second newcomer" ends properly
    And the metrics count 2 "admission_backpressure_events_total" by "policy" "drop-lru"
    And the metrics count 0 "admission_backpressure_events_total" by "policy" "reject"

  Scenario Outline: A house that wants its proxies to see <status> for a full queue
    Given a server
    And the setting overload_status is "<status>"
    And 1 task may run and 1 may wait
    And a full queue <policy>
    And the queue is full
    When I send the task "late" with
      | priority | "batch" |
    Then it is refused as "<code>" with the status <status>
    And I am told to retry after at least 1 second

    Examples:
      | status | policy                 | code                |
      | 429    | turns newcomers away   | ADMISSION_REJECT    |
      | 503    | turns newcomers away   | ADMISSION_REJECT    |
      | 529    | turns newcomers away   | ADMISSION_REJECT    |
      | 429    | drops who matters least | QUEUE_FULL_DROP_LRU |
      | 503    | drops who matters least | QUEUE_FULL_DROP_LRU |
      | 529    | drops who matters least | QUEUE_FULL_DROP_LRU |

  Scenario: Batch work does not push interactive work out
    Given a server
    And 1 task may run and 2 may wait
    And a full queue drops who matters least
    And the queue is full
    When I send the task "machine" with
      | priority | "batch" |
    Then it is refused as "QUEUE_FULL_DROP_LRU"
    And I am told to retry after at least 1 second
