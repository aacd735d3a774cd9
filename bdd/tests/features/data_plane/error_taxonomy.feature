Feature: Being told what is wrong
  A refusal has a code to act on, and a sentence that says what to change.

  Scenario Outline: A task with <mistake> is refused
    Given a server
    When I send the task "wrong" with
      | <field> | <value> |
    Then it is refused as "INVALID_PARAMS"
    And the refusal says that a retry is useless
    And the refusal names "<field>"
    And the answer carries a correlation id

    Examples:
      | mistake                      | field       | value             |
      | an id that is no UUID        | task_id     | "number one"      |
      | a session that is no UUID    | session_id  | "mine"            |
      | no session                   | session_id  |                   |
      | no model                     | model_ref   |                   |
      | no length                    | max_tokens  |                   |
      | no deadline                  | deadline_ms |                   |
      | a length of nothing          | max_tokens  | 0                 |
      | a length that is a word      | max_tokens  | "many"            |
      | a negative length            | max_tokens  | -3                |
      | a context beyond the model's | ctx         | 1000000           |
      | an unknown workload          | workload    | "poetry"          |
      | an unknown priority          | priority    | "urgent"          |
      | an unknown engine            | engine      | "steam"           |
      | a number for a prompt        | prompt      | 7                 |
      | a negative temperature       | temperature | -1                |
      | a probability above 1        | top_p       | 1.5               |
      | an unknown reaction          | on_disconnect | "panic"         |
      | a field that does not exist  | max_tokenz  | 7                 |

  Scenario: A prompt and an answer that together exceed the context are refused
    Given a server
    When I send the task "wrong" with
      | ctx        | 64 |
      | max_tokens | 64 |
    Then it is refused as "INVALID_PARAMS"
    And the refusal names "ctx"

  Scenario: A long prompt is refused before anybody reads it
    Given a server
    When I send the task "wrong" with a prompt of 200000 words
    Then it is refused as "INVALID_PARAMS"
    And the refusal says that a retry is useless

  Scenario: A task without anything to go on is refused
    Given a server
    When I send the task "wrong" with
      | prompt |  |
    Then it is refused as "INVALID_PARAMS"

  Scenario Outline: A body that <mistake> is refused
    Given a server
    When I send to "/v1/tasks" <body>
    Then it is refused as "INVALID_PARAMS"
    And the server still works

    Examples:
      | mistake           | body                        |
      | breaks off        | the bytes `{"task_id": "`   |
      | is not JSON       | the bytes `hello`           |
      | is a list         | the bytes `[1, 2]`          |
      | is empty          | the bytes ``                |
      | is not UTF-8      | bytes that are not UTF-8    |
      | is nested forever | 100000 opening brackets     |

  Scenario: A model that nobody serves
    Given a server
    When I send the task "story" with
      | model_ref | "albatross" |
    Then it is refused as "POOL_UNAVAILABLE"
    And the answer carries a correlation id

  Scenario: An engine that this machine does not have
    Given a server
    When I send the task "story" with
      | engine | "cuda" |
    Then it is refused as "POOL_UNAVAILABLE"
    And the refusal names "cuda"

  Scenario: A refusal of the pool names the engine
    Given a server
    When I drain the pool and give it 5000 ms to finish
    And I send the task "story"
    Then it is refused as "POOL_UNAVAILABLE"
    And the refusal names the engine "cpu"

  Scenario: A task that can never fit this pool's memory
    Given a server
    And the setting kv_blocks_max is "4"
    When I send the task "story" with
      | ctx        | 2048 |
      | max_tokens | 1900 |
    Then it is refused as "REPLICA_EXHAUSTED"

  Scenario: A server where nobody may wait and every place is taken
    Given a server
    And 1 task may run and 0 may wait
    And the long task "hog" is running
    When I send the task "story"
    Then it is refused as "REPLICA_EXHAUSTED"
    And I am told to retry after at least 1 second
    And the refusal says that a retry is worthwhile

  @faults
  Scenario: A fault of the server's own is said to be one, and passes
    Given a server
    And the server breaks once while it takes a task
    When I send the task "unlucky"
    Then it is refused as "INTERNAL"
    And the refusal names the engine "cpu"
    And the answer carries a correlation id
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario Outline: What does not exist is not found: <method> <path>
    Given a server
    When I send <method> to "<path>"
    Then it is refused as "NOT_FOUND"
    And the answer carries a correlation id

    Examples:
      | method | path                                               |
      | GET    | /                                                  |
      | GET    | /v1/replicasets                                    |
      | POST   | /v1/replicasets                                    |
      | GET    | /v1/tasks/x/y/z                                    |
      | GET    | /v1/sessions/00000000-0000-4000-8000-000000000000  |
      | GET    | /v1/artifacts/sha256:00                            |
      | GET    | /v1/capabilities/                                  |

  Scenario Outline: A known place asked in the wrong way: <method> <path>
    Given a server
    When I send <method> to "<path>"
    Then it is refused as "METHOD_NOT_ALLOWED"
    And the answer allows "<allowed>"

    Examples:
      | method | path                     | allowed |
      | DELETE | /v1/capabilities         | GET     |
      | GET    | /v1/tasks                | POST    |
      | PUT    | /v1/artifacts            | POST    |
      | POST   | /metrics                 | GET     |
      | GET    | /v1/pools/default/reload | POST    |
