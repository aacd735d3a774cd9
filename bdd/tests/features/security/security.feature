Feature: Keys
  Only who has a key gets in, and no key is ever written down.

  Scenario Outline: Without a key: <method> <path>
    Given a server
    And I have no key
    When I send <method> to "<path>"
    Then it is refused as "UNAUTHORIZED"
    And the answer carries a correlation id

    Examples:
      | method | path                                                  |
      | GET    | /v1/capabilities                                      |
      | GET    | /v1/pools/default/health                              |
      | POST   | /v1/pools/default/drain                               |
      | POST   | /v1/pools/default/reload                              |
      | POST   | /v1/tasks                                             |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000/stream |
      | POST   | /v1/tasks/00000000-0000-4000-8000-000000000000/cancel |
      | GET    | /v1/sessions/00000000-0000-4000-8000-000000000000     |
      | DELETE | /v1/sessions/00000000-0000-4000-8000-000000000000     |
      | POST   | /v1/artifacts                                         |
      | GET    | /v1/artifacts/sha256:00                               |

  Scenario Outline: With a wrong key: <key>
    Given a server
    And my key is "<key>"
    When I send GET to "/v1/capabilities"
    Then it is refused as "FORBIDDEN"
    And the answer carries a correlation id

    Examples:
      | key                   |
      | open-sesame           |
      | open-sesame-4712      |
      | open-sesame-4711-more |
      | OPEN-SESAME-4711      |

  Scenario: The metrics need no key
    Given a server
    And I have no key
    When I ask for "/metrics"
    Then it is answered
    And the answer carries a correlation id

  Scenario: Every configured key opens
    Given a server
    And the setting api_keys is "first-key-0815,second-key-0816"
    And my key is "second-key-0816"
    When I ask for "/v1/capabilities"
    Then it is answered

  Scenario: A server without a key makes one and prints it once
    Given a server
    And the setting api_keys is ""
    When I use the key that the server printed
    And I ask for "/v1/capabilities"
    Then it is answered
    And the printed key is not in the log
    When I have no key any more
    And I ask for "/v1/capabilities"
    Then it is refused as "UNAUTHORIZED"

  Scenario: A server without a key does not listen to the whole world
    Given the setting api_keys is ""
    And the setting listen is "0.0.0.0:0"
    Then the server refuses to start and says something about a key

  Scenario: Keys are never written down
    Given a server
    When I ask for "/v1/capabilities" with the wrong key "wrong-but-secret-31415"
    And I ask for "/v1/capabilities" with the authorization "Bearer private-token-27182"
    And I send the task "story"
    And I read the stream of "story" to its end
    And I ask for "/metrics"
    Then nothing that the server logged, counted or stored holds "wrong-but-secret-31415"
    And nothing that the server logged, counted or stored holds "private-token-27182"
    And nothing that the server logged, counted or stored holds my key
