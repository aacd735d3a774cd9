Feature: Requests as good clients send them
  What HTTP/1.1 allows, works.

  Scenario: Several requests on one connection, sent ahead
    Given a server
    When I send 5 requests at once on one connection, each under its own correlation id
    Then 5 answers come in the same order

  Scenario: A body in chunks
    Given a server
    When I send the task "story" in chunks of 7 bytes
    Then it is accepted

  Scenario: A client that asks before it sends its body
    Given a server
    When I send the task "story" and wait to be told to go on
    Then it is accepted
    And I was told to go on

  Scenario: A client that says it will send no more still gets its answer
    Given a server
    When I ask for "/metrics" and close my half of the connection
    Then it is answered

  Scenario: A request that comes byte by byte
    Given a server
    When I ask for "/metrics" byte by byte
    Then it is answered

  Scenario: Only the head of a page
    Given a server
    When I send HEAD to "/metrics"
    Then it is answered
    And the answer has no body but says how long it would be

  Scenario: Closing when asked
    Given a server
    When I ask for "/metrics" and to close the connection afterwards
    Then it is answered
    And the server closes the connection

  Scenario: The answer is dated
    Given a server
    When I ask for "/metrics"
    Then the answer is dated

  Scenario: More clients than are allowed
    Given a server
    And the setting connections_max is "4"
    When 12 clients connect and say nothing
    And they go away
    Then the server still works

  Scenario: Two hundred streams at once
    Given a server
    And 32 tasks may run and 256 may wait
    When 200 clients each send a task of 8 tokens and read it in the same request
    Then each of them gets 8 tokens, numbered from 0, and an end
